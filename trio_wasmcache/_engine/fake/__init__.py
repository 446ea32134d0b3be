"""The engine of tests: it runs no wasm."""
