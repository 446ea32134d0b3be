"""The engine that runs: the only folder that imports wasmtime or ctypes."""
