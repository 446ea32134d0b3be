// Functions that succeed or fail with words, exported from C.
#include <assert.h>
#include <stdio.h>

#define EXPORT(name) __attribute__((export_name(#name)))

EXPORT(collatz) long long collatz(long long n) {
    long long steps = 0;
    for (; n > 1; steps++) n = n % 2 ? 3 * n + 1 : n / 2;
    return steps;
}

EXPORT(fail) long long fail(long long n) {
    if (n) printf("the value is %lld\n", n);
    assert(n == 0);
    return n;
}
