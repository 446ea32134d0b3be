/* Buffers in and out, in each of the ways that `BufferAbi` knows, with malloc and free. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(#name)))

static int32_t allocated; /* and not freed yet */

EXPORT(malloc) void *counted_malloc(size_t size) {
    if (size == 1019) return NULL;
    if (size == 1021) return (void *)0xfffffff0;
    allocated++;
    return malloc(size);
}

EXPORT(free) void counted_free(void *at) {
    allocated--;
    free(at);
}

static char *upper(const char *text, size_t size) {
    char *result = counted_malloc(size + 1);
    for (size_t at = 0; at < size; at++)
        result[at] = text[at] >= 'a' && text[at] <= 'z' ? text[at] - 32 : text[at];
    result[size] = 0;
    return result;
}

static uint64_t both(const void *high, size_t low) { return (uint64_t)(uintptr_t)high << 32 | low; }

EXPORT(upper_packed) uint64_t upper_packed(const char *text, size_t size) {
    return both(upper(text, size), size);
}

EXPORT(upper_packed_low) uint64_t upper_packed_low(const char *text, size_t size) {
    return (uint64_t)size << 32 | (uint32_t)(uintptr_t)upper(text, size);
}

struct area {
    const char *at;
    size_t size;
};

EXPORT(upper_area) const struct area *upper_area(const char *text, size_t size) {
    static struct area result;
    result = (struct area){upper(text, size), size};
    return &result;
}

EXPORT(upper_out) void upper_out(struct area *result, const char *text, size_t size) {
    *result = (struct area){upper(text, size), size};
}

/* Text that ends with a zero, in and out. */
EXPORT(upper_nul) char *upper_nul(const char *text) { return upper(text, strlen(text)); }

/* A result that lies in the argument: nobody has to free it. */
EXPORT(trim) uint64_t trim(const char *text, size_t size) {
    while (size && *text == ' ') text++, size--;
    while (size && text[size - 1] == ' ') size--;
    return both(text, size);
}

/* A result that is always there, and must not be freed. */
EXPORT(fixed) uint64_t fixed(void) { return both("always there", 12); }

/* Numbers beside buffers. */
EXPORT(repeat) uint64_t repeat(const char *text, size_t size, uint32_t times) {
    char *result = counted_malloc(size * times);
    for (uint32_t time = 0; time < times; time++) memcpy(result + size * time, text, size);
    return both(result, size * times);
}

/* FNV-1a. */
EXPORT(hash) uint32_t hash(const unsigned char *data, size_t size) {
    uint32_t value = 2166136261u;
    for (size_t at = 0; at < size; at++) value = (value ^ data[at]) * 16777619u;
    return value;
}

/* What is allocated before this call, and after it the one argument that the host keeps. */
EXPORT(left) int32_t left(const char *text, size_t size) {
    (void)text, (void)size;
    return allocated;
}

/* Whatever the host is told, true or not. */
EXPORT(lie) uint64_t lie(uint64_t claim) { return claim; }
EXPORT(lie_nul) uint32_t lie_nul(uint32_t claim) { return claim; }
