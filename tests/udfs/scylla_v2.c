/* UDFs for version 2 of the Scylla ABI: arguments are the guest's to free, results the host's. */
#include <stdlib.h>

#include "scylla.h"

const int _scylla_abi = 2;

static int32_t allocated; /* and not freed yet */

/* An allocator with moods: a few sizes that nobody asks for by accident misbehave. */
EXPORT(_scylla_malloc) void *_scylla_malloc(int32_t size) {
    if (size == 1013) __builtin_trap();
    if (size == 1019) return NULL;
    if (size == 1021) return (void *)0xfffffff0;
    if (size == 1031) for (;;) __asm__ volatile("");
    allocated++;
    return malloc(size);
}

static unsigned char poison[64];

EXPORT(_scylla_free) void _scylla_free(void *at) {
    if (at == poison) __builtin_trap();
    allocated--;
    free(at);
}

static unsigned char *new_result(int32_t size) { return _scylla_malloc(size); }

static void done_with(packed argument) {
    if (size_of(argument) != -1) _scylla_free(data_of(argument));
}

/* (text) -> int: how many pieces are allocated while nothing should be. */
EXPORT(left) int32_t left(packed text) {
    done_with(text);
    return allocated;
}

/* (text) -> text: one that can't be freed. */
EXPORT(poisoned) packed poisoned(packed text) {
    done_with(text);
    return pack(poison, 5);
}
