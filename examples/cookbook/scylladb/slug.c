// slug.c
#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>

#define EXPORT(name) __attribute__((export_name(#name))) name

const int _scylla_abi = 2;
void *EXPORT(_scylla_malloc)(uint32_t size) { return malloc(size); }
void EXPORT(_scylla_free)(void *at) { free(at); }

// A text is one number: its size in the high half, its address in the low half.
uint64_t EXPORT(slug)(uint64_t text, int32_t most) {
    uint32_t size = text >> 32, length = 0;
    char *in = (char *)(uintptr_t)(uint32_t)text, *out = _scylla_malloc(size + 1);
    if (!out || most < 1) abort();
    for (uint32_t i = 0; i < size; i++) {
        if (isspace((unsigned char)in[i])) continue;
        int begins = i == 0 || isspace((unsigned char)in[i - 1]);
        if (begins && length && --most == 0) break;
        if (begins && length) out[length++] = '-';
        out[length++] = tolower((unsigned char)in[i]);
    }
    _scylla_free(in);  // arguments are the guest's
    return (uint64_t)length << 32 | (uint32_t)(uintptr_t)out;
}
