#!/bin/sh
# Builds the plugins of this folder, or those that are named; the modules are checked in, as the
# tests need no toolchain. golden.json has what they answer under Extism: see golden.py.
#
#     apt-get install clang lld rustc libstd-rust-dev-wasm32
#     pip install ziglang==0.17.1; npm install assemblyscript@0.27 @extism/as-pdk@1.0.0
set -eu
cd "$(dirname "$0")"

for name in ${*:-c rust zig assemblyscript}; do
    case $name in
    c) clang --target=wasm32 -O2 -nostdlib -ffreestanding -Wl,--no-entry,--strip-all \
        -o c.wasm plugin.c ;;
    rust) "${RUSTC:-rustc}" --edition 2021 --target wasm32-wasi --crate-type cdylib \
        -C opt-level=z -C lto -C panic=abort -C strip=symbols -C linker=wasm-ld \
        -o rust.wasm plugin.rs ;;
    zig) python -m ziglang build-exe plugin.zig -target wasm32-freestanding -fno-entry -rdynamic \
        -O ReleaseSmall -fstrip -femit-bin=zig.wasm ;;
    assemblyscript) npx --no asc plugin.ts -o assemblyscript.wasm -O --use abort=plugin/myAbort ;;
    esac
done
