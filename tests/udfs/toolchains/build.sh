#!/bin/sh
# Builds modules as toolchains emit them, with what their users are surprised by. The .wasm files
# are checked in: the tests need no toolchain.
#
#     apt-get install clang lld emscripten; npm install assemblyscript acorn; pip install ziglang
set -eu
cd "$(dirname "$0")"

npx asc assemblyscript.ts -o assemblyscript.wasm --exportRuntime -O
python -m ziglang build-exe zig.zig -target wasm32-freestanding -fno-entry -rdynamic \
    -O ReleaseSmall -femit-bin=zig.wasm

emcc -O2 emscripten-printf.c -sSTANDALONE_WASM --no-entry -o emscripten-standalone.wasm
for what in "-O3 emscripten-printf.c minified" "-O1 emscripten-longjmp.c longjmp" \
    "-O1 -fexceptions --bind emscripten-embind.cpp embind"; do
    name="emscripten-${what##* }"
    emcc ${what% *} -o "$name.js"
    rm "$name.js"
done

# Zig's clang, as that of Debian 12 writes no DWARF 5 for wasm.
for version in 4 5; do
    python -m ziglang cc -target wasm32-freestanding -nostdlib -O1 "-gdwarf-$version" \
        "-fdebug-prefix-map=$PWD=/src" -Wl,--no-entry -o "clang-dwarf$version.wasm" clang.c
done
# Debian's clang, for offsets behind many functions; linked apart, or clang would call wasm-opt.
clang --target=wasm32 -O1 -g "-ffile-prefix-map=$PWD=/src" -c -o clang-grows.o clang-grows.c
wasm-ld --no-entry -o clang-grows.wasm clang-grows.o
rm clang-grows.o
# Zig's writes exceptions as the standard has them.
python -m ziglang c++ -target wasm32-freestanding -nostdlib -ffreestanding -O1 -g0 \
    -mcpu=generic+exception_handling+multivalue+reference_types -fno-rtti \
    -fwasm-exceptions -mllvm -wasm-use-legacy-eh=false -Wl,--no-entry,--strip-all \
    -o cpp-exceptions.wasm cpp-exceptions.cpp
ls -l ./*.wasm
