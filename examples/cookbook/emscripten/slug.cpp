// slug.cpp
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <emscripten.h>

static std::string result;  // stays until the next call: result_of="guest"

extern "C" EMSCRIPTEN_KEEPALIVE
uint64_t slug(const char *at, uint32_t size, uint32_t most) {
    if (most == 0) {
        fprintf(stderr, "a slug has at least one word, not %u\n", most);
        abort();
    }
    result.clear();
    bool within = false;
    for (unsigned char letter : std::string_view(at, size)) {
        bool begins = !isspace(letter) && !within;
        within = !isspace(letter);
        if (begins && !result.empty() && --most == 0) break;
        if (begins && !result.empty()) result += '-';
        if (within) result += tolower(letter);
    }
    return (uint64_t)(uintptr_t)result.data() << 32 | result.size();
}

extern "C" void emscripten_notify_memory_growth(size_t) {}  // else it would be an import
