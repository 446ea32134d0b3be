#!/bin/sh
# Builds every module of this folder. The .wasm files are checked in: the tests need no compiler.
#
# Built with Debian 12: clang, lld and wasi-libc (for malloc), and for title.rs
# rustc and libstd-rust-dev-wasm32.
#
#     apt-get install clang lld wasi-libc libclang-rt-dev-wasm32 rustc libstd-rust-dev-wasm32
set -eu
cd "$(dirname "$0")"

FLAGS="-O2 -Wall -Wextra -Werror"
LINK="-Wl,--no-entry,--strip-all,--stack-first,-z,stack-size=16384"
SCYLLA="-Wl,--export=_scylla_abi"

clang --target=wasm32 $FLAGS -ffreestanding -nostdlib $LINK $SCYLLA -o scylla_v1.wasm scylla_v1.c

# malloc from wasi-libc, linked statically; nothing of WASI is left in the modules.
clang --target=wasm32-wasi $FLAGS -nostartfiles -nodefaultlibs $LINK $SCYLLA -o scylla_v2.wasm scylla_v2.c -lc
clang --target=wasm32-wasi $FLAGS -nostartfiles -nodefaultlibs $LINK -o buffer.wasm buffer.c -lc

"${RUSTC:-rustc}" --edition 2021 --target wasm32-unknown-unknown --crate-type cdylib -O \
    -C panic=abort -C strip=symbols -C link-arg=-zstack-size=16384 -C link-arg=--stack-first \
    -C linker=wasm-ld -o title.wasm title.rs

# With WASI, as these toolchains use it: a reactor, a command, and a library of Rust's.
WASI="--target=wasm32-wasi -Wl,--strip-all,--stack-first,-z,stack-size=16384"
clang $WASI -O2 -Wall -Wextra -mexec-model=reactor -o words.wasm words.c
clang $WASI -O2 -Wall -Wextra -o command.wasm command.c
"${RUSTC:-rustc}" --edition 2021 --target wasm32-wasi --crate-type cdylib -C opt-level=z -C lto \
    -C codegen-units=1 -C panic=abort -C strip=symbols -C link-arg=-zstack-size=16384 \
    -C linker=wasm-ld -o panics.wasm panics.rs

ls -l ./*.wasm
