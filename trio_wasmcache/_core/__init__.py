"""The pure core: decisions without a clock, a thread, a log, an event loop or wasmtime."""
