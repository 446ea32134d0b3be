// slug.c
#include <assert.h>
#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>

__attribute__((export_name("slug")))
uint64_t slug(const char *text, uint32_t size, uint32_t most) {
    assert(most > 0);
    char *out = malloc(size + 1);
    assert(out);
    uint32_t length = 0;
    for (uint32_t i = 0; i < size; i++) {
        if (isspace((unsigned char)text[i])) continue;
        int begins = i == 0 || isspace((unsigned char)text[i - 1]);
        if (begins && length && --most == 0) break;
        if (begins && length) out[length++] = '-';
        out[length++] = tolower((unsigned char)text[i]);
    }
    return (uint64_t)(uintptr_t)out << 32 | length;
}
