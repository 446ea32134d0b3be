"""The fake engine, for tests: an `Engine` that runs Python functions in place of wasm."""
