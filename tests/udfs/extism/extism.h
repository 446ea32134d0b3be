/* The functions of Extism's host that a plugin imports, and two helpers; for plugin.c. */
#include <stdint.h>

#define ENV(name) __attribute__((import_module("extism:host/env"), import_name(name)))
#define USER(name) __attribute__((import_module("extism:host/user"), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

typedef uint64_t block;

ENV("alloc") block extism_alloc(uint64_t size);
ENV("free") void extism_free(block at);
ENV("length") uint64_t extism_length(block at);
ENV("length_unsafe") uint64_t extism_length_unsafe(block at);
ENV("load_u8") uint32_t extism_load_u8(uint64_t at);
ENV("load_u64") uint64_t extism_load_u64(uint64_t at);
ENV("store_u8") void extism_store_u8(uint64_t at, uint32_t byte);
ENV("store_u64") void extism_store_u64(uint64_t at, uint64_t word);
ENV("input_offset") block extism_input_offset(void);
ENV("input_length") uint64_t extism_input_length(void);
ENV("input_load_u8") uint32_t extism_input_load_u8(uint64_t at);
ENV("input_load_u64") uint64_t extism_input_load_u64(uint64_t at);
ENV("output_set") void extism_output_set(uint64_t at, uint64_t size);
ENV("error_set") void extism_error_set(block at);
ENV("error_get") block extism_error_get(void);
ENV("config_get") block extism_config_get(block key);
ENV("var_get") block extism_var_get(block key);
ENV("var_set") void extism_var_set(block key, block value);
ENV("http_request") block extism_http_request(block request, block body);
ENV("http_status_code") int32_t extism_http_status_code(void);
ENV("http_headers") block extism_http_headers(void);
ENV("log_info") void extism_log_info(block line);
ENV("log_debug") void extism_log_debug(block line);
ENV("log_error") void extism_log_error(block line);
ENV("get_log_level") int32_t extism_get_log_level(void);

static uint64_t size_of(const char *text) {
    uint64_t size = 0;
    while (text[size]) size++;
    return size;
}

static block block_of(const char *data, uint64_t size) {
    block at = extism_alloc(size);
    for (uint64_t i = 0; i < size; i++) extism_store_u8(at + i, (uint8_t)data[i]);
    return at;
}

static block text(const char *string) { return block_of(string, size_of(string)); }

static void output(const char *string) { extism_output_set(text(string), size_of(string)); }
