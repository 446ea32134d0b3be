#!/bin/sh
# Builds every module of this folder. The .wasm files are checked in: the examples need no compiler.
#
# Built with Debian 12: clang, lld and wasi-libc (for its libm), and for words.rs
# rustc and libstd-rust-dev-wasm32.
#
#     apt-get install clang lld wasi-libc rustc libstd-rust-dev-wasm32
set -eu
cd "$(dirname "$0")"

# A stack of 16 KiB in front of the data: it suffices here, and an overflow traps instead of
# overwriting data. Memory starts at the one or two pages that are needed.
LINK="-Wl,--no-entry,--strip-all,--stack-first,-z,stack-size=16384"

for name in collatz crc32 price stats; do
    clang --target=wasm32 -O2 -Wall -Wextra -Werror -ffreestanding -nostdlib $LINK -o "$name.wasm" "$name.c"
done

# sin, cos, asin from wasi-libc, linked statically; nothing of WASI is left in the module.
clang --target=wasm32-wasi -O2 -Wall -Wextra -Werror -nostartfiles -nodefaultlibs $LINK -o distance.wasm distance.c -lm -lc

"${RUSTC:-rustc}" --edition 2021 --target wasm32-unknown-unknown --crate-type cdylib -O \
    -C panic=abort -C strip=symbols -C link-arg=-zstack-size=16384 -C link-arg=--stack-first \
    -C linker=wasm-ld -o words.wasm words.rs

# greet.component.wasm: `componentEmbed` and `componentNew` of @bytecodealliance/jco (npm), with this
# core module and greet.wit; `jco transpile` takes the core module out again.
clang --target=wasm32 -O2 -Wall -Wextra -Werror -ffreestanding -fno-builtin -nostdlib $LINK \
    -o greet.component.core.wasm greet.c

ls -l ./*.wasm
