/* Grows its memory and traps, behind 240 other functions: their indexes take two bytes in a call,
   and an instruction that grows memory has two bytes altogether. */

#define ONE(n) \
    __attribute__((noinline)) static int f##n(int x) { return x * 3 + n; }
#define TEN(n) \
    ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4) ONE(n##5) ONE(n##6) ONE(n##7) ONE(n##8) \
    ONE(n##9)
TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11) TEN(12)
TEN(13) TEN(14) TEN(15) TEN(16) TEN(17) TEN(18) TEN(19) TEN(20) TEN(21) TEN(22) TEN(23) TEN(24)

#define USE(n) f##n,
#define USES(n) \
    USE(n##0) USE(n##1) USE(n##2) USE(n##3) USE(n##4) USE(n##5) USE(n##6) USE(n##7) USE(n##8) \
    USE(n##9)
int (*const all[])(int) = {
    USES(1) USES(2) USES(3) USES(4) USES(5) USES(6) USES(7) USES(8) USES(9) USES(10) USES(11)
    USES(12) USES(13) USES(14) USES(15) USES(16) USES(17) USES(18) USES(19) USES(20) USES(21)
    USES(22) USES(23) USES(24)};

__attribute__((noinline)) static void check(int old)
{
    if (old < 0)
        __builtin_trap(); /* check: refused */
}

__attribute__((noinline, export_name("grow"))) int grow(int pages, int more)
{
    int old = __builtin_wasm_memory_grow(0, pages);
    check(old); /* grow: first */
    int last = __builtin_wasm_memory_grow(0, more);
    check(last); /* grow: second */
    return all[(unsigned)last % 240](last);
}

/* Behind both: its body begins some bytes later in what is compiled. */
__attribute__((noinline, export_name("divide"))) int divide(int by, int value)
{
    return value / by; /* divide */
}
