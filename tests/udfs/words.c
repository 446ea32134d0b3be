// A reactor that prints, and whose assert and abort end calls.
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPORT(name) __attribute__((export_name(#name))) name

int64_t EXPORT(divide)(int64_t a, int64_t b) {
  printf("dividing %lld\n", (long long)a);
  fflush(stdout);
  assert(b != 0 && "b must not be zero");
  return a / b;
}
