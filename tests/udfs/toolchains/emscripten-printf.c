#include <stdio.h>
#include <emscripten.h>
EMSCRIPTEN_KEEPALIVE int add(int a,int b){ printf("%d\n",a); return a+b; }
