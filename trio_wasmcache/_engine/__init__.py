"""The only folder that imports wasmtime or ctypes. What it offers the rest is in `seam`."""
