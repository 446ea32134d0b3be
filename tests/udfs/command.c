// A command: tells what WASI gives it, and exits with the status in its last argument.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
  char line[256];
  for (int i = 0; i < argc; i++) printf("argument %s\n", argv[i]);
  const char *name = getenv("NAME");
  printf("name %s\n", name ? name : "(none)");
  int bytes = 0, lines = 0;
  while (fgets(line, sizeof line, stdin)) bytes += strlen(line), lines++;
  printf("input %d bytes, %d lines\n", bytes, lines);
  unsigned char random[16];
  getentropy(random, sizeof random);
  printf("random ");
  for (int i = 0; i < 16; i++) printf("%02x", random[i]);
  struct timespec before, after, pause = {3600, 0};
  clock_gettime(CLOCK_REALTIME, &before);
  if (argc > 2) nanosleep(&pause, NULL);
  clock_gettime(CLOCK_REALTIME, &after);
  printf("\ntime %lld, slept %lld\n", (long long)before.tv_sec,
         (long long)(after.tv_sec - before.tv_sec));
  fprintf(stderr, "done");
  if (argc > 1) exit(atoi(argv[argc - 1]));
  return 0;
}
