#include <stdlib.h>
#include <setjmp.h>
#include <emscripten.h>
jmp_buf b;
__attribute__((noinline)) void deep(int x){ if(x>3) longjmp(b,x); }
EMSCRIPTEN_KEEPALIVE int add(int a,int c){ if(setjmp(b)) return -1; deep(a); return a+c; }
