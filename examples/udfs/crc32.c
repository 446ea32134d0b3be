// CRC-32 (as in zlib and PNG) of a text that the caller has put into text_buffer.
#include <stdint.h>

#define TEXT_SIZE 32768

static uint8_t text[TEXT_SIZE];

// Where to put the text. The address is a constant of the module, the same in every instance.
__attribute__((export_name("text_buffer")))
uint8_t *text_buffer(void) {
    return text;
}

__attribute__((export_name("crc32")))
uint32_t crc32(uint32_t length) {
    if (length > TEXT_SIZE)
        __builtin_trap();
    uint32_t crc = ~0u;
    for (uint32_t i = 0; i < length; i++) {
        crc ^= text[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}
