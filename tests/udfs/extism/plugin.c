/* An Extism plugin in C, against the host's functions themselves: extism.h. */
#include "extism.h"

USER("lookup") block lookup(block key);
USER("add") uint64_t add(uint64_t a, uint64_t b);
USER("note") void note(block line, uint32_t number);

static uint64_t number_of(block at) {
    uint64_t number = 0, size = at ? extism_length(at) : 0;
    for (uint64_t i = 0; i < size; i++) number = number * 10 + extism_load_u8(at + i) - '0';
    return number;
}

static uint64_t digits(uint64_t number, char *to) {
    char turned[20];
    uint64_t size = 0;
    do turned[size++] = '0' + number % 10; while (number /= 10);
    for (uint64_t i = 0; i < size; i++) to[i] = turned[size - 1 - i];
    return size;
}

static char json[256];

static uint64_t put(uint64_t at, const char *string) {
    for (; *string; string++) json[at++] = *string;
    return at;
}

/* Vowels of the input, and of all inputs so far, which are kept in a variable. */
EXPORT("count_vowels") int32_t count_vowels(void) {
    uint64_t count = 0, size = extism_input_length();
    for (uint64_t i = 0; i < size; i++) {
        uint32_t letter = extism_input_load_u8(i) | 0x20;
        if (letter == 'a' || letter == 'e' || letter == 'i' || letter == 'o' || letter == 'u')
            count++;
    }
    uint64_t total = count + number_of(extism_var_get(text("total")));
    char decimal[20];
    extism_var_set(text("total"), block_of(decimal, digits(total, decimal)));
    uint64_t at = put(0, "{\"count\":");
    at += digits(count, json + at);
    at = put(at, ",\"total\":");
    at += digits(total, json + at);
    at = put(at, ",\"vowels\":\"aeiouAEIOU\"}");
    extism_output_set(block_of(json, at), at);
    return 0;
}

EXPORT("echo") int32_t echo(void) {
    extism_output_set(extism_input_offset(), extism_input_length());
    return 0;
}

/* Another way: byte for byte, and eight at once. */
EXPORT("copy") int32_t copy(void) {
    uint64_t size = extism_input_length(), i = 0;
    block to = extism_alloc(size);
    for (; i + 8 <= size; i += 8) extism_store_u64(to + i, extism_input_load_u64(i));
    for (; i < size; i++) extism_store_u8(to + i, extism_input_load_u8(i));
    extism_output_set(to, size);
    return 0;
}

EXPORT("sum") int32_t sum(void) {
    uint64_t total = 0, size = extism_input_length();
    for (uint64_t i = 0; i < size; i++) total += extism_input_load_u8(i);
    extism_output_set(block_of((char *)&total, 8), 8);
    return 0;
}

EXPORT("nothing") void nothing(void) {}

EXPORT("fails") int32_t fails(void) {
    block copy = extism_alloc(extism_input_length());
    for (uint64_t i = 0; i < extism_input_length(); i++)
        extism_store_u8(copy + i, extism_input_load_u8(i));
    extism_error_set(copy);
    return 1;
}

EXPORT("status") int32_t status(void) { return (int32_t)number_of(extism_input_offset()); }

/* An error counts, whatever is returned. */
EXPORT("both") int32_t both(void) {
    output("output");
    extism_error_set(text("an error with status 0"));
    return 0;
}

EXPORT("traps") int32_t traps(void) {
    extism_error_set(text("the last words"));
    __builtin_trap();
}

/* The value of the config's key that is the input. */
EXPORT("config") int32_t config(void) {
    block found = extism_config_get(extism_input_offset());
    if (!found) return 7;
    extism_output_set(found, extism_length(found));
    return 0;
}

/* Set the variable that is the input's first byte to the rest; output its old value. */
EXPORT("swap") int32_t swap(void) {
    uint64_t size = extism_input_length();
    char name = (char)extism_input_load_u8(0);
    block old = extism_var_get(block_of(&name, 1)), value = 0;
    if (size > 1) value = extism_alloc(size - 1);
    for (uint64_t i = 1; i < size; i++) extism_store_u8(value + i - 1, extism_input_load_u8(i));
    extism_var_set(block_of(&name, 1), value);
    if (old) extism_output_set(old, extism_length(old));
    return 0;
}

EXPORT("logs") int32_t logs(void) {
    extism_log_debug(text("a detail"));
    extism_log_info(text("hello"));
    extism_log_error(text("it went wrong"));
    return extism_get_log_level() == 2 ? 0 : 1;
}

EXPORT("fetch") int32_t fetch(void) {
    block body = extism_http_request(text("{\"url\":\"http://localhost/\"}"), text("body"));
    int32_t code = extism_http_status_code();
    block headers = extism_http_headers();
    if (headers) {
        extism_output_set(headers, extism_length(headers));
        return code == 200 ? 0 : 2;
    }
    extism_output_set(body, extism_length(body));
    return code;
}

EXPORT("asks") int32_t asks(void) {
    note(text("asking"), 3);
    block found = lookup(extism_input_offset());
    if (!found) return add(40, 2) == 42 ? 42 : 1;
    extism_output_set(found, extism_length(found));
    return 0;
}

EXPORT("hungry") int32_t hungry(void) {
    for (;;) extism_alloc(1 << 20);
}

EXPORT("loops") int32_t loops(void) {
    for (;;) extism_load_u8(1);
}

/* What the input says, which is a row of operations of 17 bytes: a letter and two numbers. Number
 * 0x8000000000000000 + n is the offset of the n-th block. The output is each result. */
#define MOST 64
static uint64_t results[MOST], blocks[MOST];
static uint64_t known;

static uint64_t number(uint64_t given) {
    uint64_t which = given & 0xffff;
    if (given >> 63 && which < MOST) return blocks[which] + (given >> 16 & 0xffff);
    return given;
}

EXPORT("operate") int32_t operate(void) {
    uint64_t size = extism_input_length() / 17, done = 0;
    known = 0;
    for (; done < size && done < MOST; done++) {
        uint64_t at = done * 17, result = 0;
        uint64_t a = number(extism_input_load_u64(at + 1));
        uint64_t b = number(extism_input_load_u64(at + 9));
        switch (extism_input_load_u8(at)) {
        case 'a':
            result = extism_alloc(a);
            blocks[known++] = result;
            result = !!result;
            break;
        case 'f': extism_free(a); break;
        case 'l': result = extism_length(a); break;
        case 'r': result = extism_load_u8(a); break;
        case 'R': result = extism_load_u64(a); break;
        case 'w': extism_store_u8(a, b); break;
        case 'W': extism_store_u64(a, b); break;
        case 'i': result = extism_input_load_u8(a); break;
        case 'I': result = extism_input_load_u64(a); break;
        case 'n': result = extism_input_length(); break;
        case 'o': extism_output_set(a, b); break;
        case 'e': extism_error_set(a); break;
        case 'c': result = !!extism_config_get(a); break;
        case 'v': result = !!extism_var_get(a); break;
        case 'V': extism_var_set(a, b); break;
        case 'g': extism_log_info(a); break;
        }
        results[done] = result;
    }
    extism_output_set(block_of((char *)results, done * 8), done * 8);
    return 0;
}
