// A C++ function that throws and catches, with the few parts of the runtime that this takes.
using size = __SIZE_TYPE__;

__asm__(".globl __cpp_exception\n.tagtype __cpp_exception i32\n__cpp_exception:\n");

static char pool[1024];
static unsigned used;

extern "C" {
void *__cxa_allocate_exception(size bytes) { return pool + (used = (used + bytes + 15) % 512 & ~15u); }
void __cxa_free_exception(void *) {}
[[noreturn]] void __cxa_throw(void *thrown, void *, void (*)(void *)) { __builtin_wasm_throw(0, thrown); }
void *__cxa_begin_catch(void *thrown) { return thrown; }
void __cxa_end_catch() {}
[[noreturn]] void __cxa_rethrow() { __builtin_wasm_rethrow(); }
void _ZSt9terminatev() { __builtin_trap(); }
struct { int index; void *lsda; int selector; } __wasm_lpad_context;
int _Unwind_CallPersonality(void *) { __wasm_lpad_context.selector = 1; return 0; }
int __gxx_wasm_personality_v0(...) { return 0; }
}

struct Guard {
    long long &count;
    ~Guard() { count += 100; }
};

static long long unwound;

__attribute__((noinline)) static long long half(long long n) {
    Guard guard{unwound};
    if (n % 2) throw 1;
    return n / 2;
}

// Half of an even number; of an odd one, its negative. Adds 100 for each destructor so far.
extern "C" __attribute__((export_name("half"))) long long guarded(long long n) {
    try {
        return half(n) + unwound;
    } catch (...) {
        return -n + unwound;
    }
}
