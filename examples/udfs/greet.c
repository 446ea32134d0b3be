// The core module of a component: greet.wit says its type.
#define EXPORT(name) __attribute__((export_name(name)))

extern unsigned char __heap_base;
static unsigned char *top = &__heap_base;

static void copy(void *to, const void *from, int size) {
    for (char *out = to, *in = (char *)from; size--;) *out++ = *in++;
}

// The canonical ABI's allocator. Nothing is freed before `cabi_post_greet`, which frees all.
EXPORT("cabi_realloc") void *cabi_realloc(void *old, int old_size, int align, int size) {
    unsigned char *at = (unsigned char *)(((unsigned long)top + align - 1) & -align);
    if (at + size > (unsigned char *)(__builtin_wasm_memory_size(0) << 16)) {
        if (__builtin_wasm_memory_grow(0, (size >> 16) + 1) == -1UL) __builtin_trap();
    }
    copy(at, old, old_size);
    top = at + size;
    return at;
}

struct text { const char *at; int size; };
static struct text result;

EXPORT("greet") struct text *greet(const char *name, int size) {
    char *to = cabi_realloc(0, 0, 1, size + 7);
    copy(to, "hello, ", 7);
    copy(to + 7, name, size);
    result = (struct text){to, size + 7};
    return &result;
}

EXPORT("cabi_post_greet") void cabi_post_greet(struct text *returned) {
    (void)returned;
    top = &__heap_base;
}
