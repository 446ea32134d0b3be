/* What the two versions of the Scylla ABI share: how values cross, and a few UDFs. */
#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name)))

/* Where the host reads the version: the exported global is the address of this. */
extern const int _scylla_abi;

typedef int64_t packed; /* size << 32 | address; size -1 is null */

static inline int32_t size_of(packed p) { return (int32_t)(p >> 32); }
static inline unsigned char *data_of(packed p) { return (unsigned char *)(uintptr_t)(uint32_t)p; }
static inline packed pack(const void *data, int32_t size) {
    return (packed)((uint64_t)(uint32_t)size << 32 | (uint32_t)(uintptr_t)data);
}
static inline packed null(void) { return pack(NULL, -1); }

static inline int32_t read_int(const unsigned char *at) {
    return (int32_t)((uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]);
}
static inline void write_int(unsigned char *at, int32_t value) {
    for (int byte = 0; byte < 4; byte++) at[byte] = (unsigned char)((uint32_t)value >> (24 - 8 * byte));
}

/* Room for a result, and giving an argument back: what the versions do differently. */
static unsigned char *new_result(int32_t size);
static void done_with(packed argument);

/* Anything: gives it back as it is; in version 2 whoever gets it frees it. */
EXPORT(echo) packed echo(packed value) { return value; }

/* The second of two: the first is given back. */
EXPORT(second) packed second(packed first, packed value) {
    done_with(first);
    return value;
}

/* (text, text) -> text: one after the other. */
EXPORT(join) packed join(packed left, packed right) {
    int32_t a = size_of(left), b = size_of(right);
    unsigned char *result = new_result(a + b);
    for (int32_t at = 0; at < a; at++) result[at] = data_of(left)[at];
    for (int32_t at = 0; at < b; at++) result[a + at] = data_of(right)[at];
    done_with(left);
    done_with(right);
    return pack(result, a + b);
}

/* (text, int) -> int: how often a byte occurs; all but the text cross as they are. */
EXPORT(count) int32_t count(packed text, int32_t byte) {
    int32_t found = 0;
    for (int32_t at = 0; at < size_of(text); at++) found += data_of(text)[at] == byte;
    done_with(text);
    return found;
}

/* (int, int) -> int, called on null: a null counts as nothing, and two nulls give null. */
EXPORT(plus) packed plus(packed left, packed right) {
    if (size_of(left) == -1 && size_of(right) == -1) return null();
    int32_t sum = (size_of(left) == -1 ? 0 : read_int(data_of(left))) +
                  (size_of(right) == -1 ? 0 : read_int(data_of(right)));
    done_with(left);
    done_with(right);
    unsigned char *result = new_result(4);
    write_int(result, sum);
    return pack(result, 4);
}

/* (int) -> bigint: nothing crosses through memory. */
EXPORT(fib) int64_t fib(int32_t n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

/* (int) -> tinyint, smallint or boolean: more than the type holds, which the host has to cut. */
EXPORT(wide) int32_t wide(int32_t value) { return value; }

/* (bigint) -> text: whatever the host is told, true or not. */
EXPORT(lie) packed lie(int64_t claim) { return claim; }
EXPORT(lie_of_text) packed lie_of_text(packed text, int64_t claim) {
    done_with(text);
    return claim;
}

/* (text) -> int: one page more of memory, so that the host's pages are not the last ones. */
EXPORT(grow) int32_t grow(packed text) {
    done_with(text);
    return (int32_t)__builtin_wasm_memory_grow(0, 1);
}
