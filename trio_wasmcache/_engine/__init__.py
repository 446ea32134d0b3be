"""Engines: what runs wasm. `base` has the protocols; `wasmtime` and `fake` implement them."""
