#include <emscripten/bind.h>
#include <stdexcept>
int add(int a,int b){ if(a<0) throw std::runtime_error("neg"); return a+b; }
EMSCRIPTEN_BINDINGS(m){ emscripten::function("add",&add); }
