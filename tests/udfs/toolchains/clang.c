/* Traps in a line of its own, called from others: for the lines of frames. */

typedef struct {
    int value;
    int by;
} pair;

__attribute__((noinline)) static int quotient(pair *both)
{
    if (both->by == 0)
        __builtin_trap();
    return both->value / both->by;
}

__attribute__((noinline, export_name("half_of"))) int half_of(int value, int by)
{
    pair both = {value, by};
    int result = 1;
    for (int i = 0; i < 2; i++)
        result +=
            quotient(&both);
    return result;
}
