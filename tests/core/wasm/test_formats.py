"""What bytes are that are no core module: a sentence for each kind, whatever they are."""

from __future__ import annotations

import gzip
import pickle

import pytest
import wasmtime
from hypothesis import given, strategies as st

from trio_wasmcache._core.wasm.formats import foreign, is_component
from trio_wasmcache._core.wasm.reader import (
    HEADER,
    ForeignFormatError,
    MalformedModuleError,
    read_module,
)

COMPONENT = b"\0asm\x0d\0\1\0"
TAR = b"name".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "nothing: there are no bytes"),
        (HEADER[:3], "a module that was cut after 3 bytes"),
        (HEADER[:7], "a module that was cut after 7 bytes"),
        (b"\0asm\2\0\0\0", "WebAssembly of version 2, and not 1"),
        (COMPONENT, "a component, where only a core module can be"),
        (b"\x7fELF\2\1\1" + bytes(57), "an ELF file"),
        (gzip.compress(HEADER, mtime=0), "gzip data"),  # its id is the same in each worker
        (b"\x28\xb5\x2f\xfd....", "zstd data"),
        (b"PK\3\4....", "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"!<arch>\n", "a static library"),
        (b"BC\xc0\xde....", "LLVM bitcode"),
        (TAR, "a tar archive"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        (b'{"message": "Not Found"}', "JSON"),
        (b"(module)", "WebAssembly text"),
        ("// a \u202escript\nexport".encode(), "text that begins with '// a ?script'"),
        ("\ufeffhällo".encode(), "text that begins with 'hällo'"),
        (b"\1\2\3\xff", "unknown data that begins with 01 02 03 ff"),
    ],
)
def test_bytes_that_are_no_module_are_named(data: bytes, said: str) -> None:
    """The reader says what they are, in printable words, and the error can be pickled."""
    with pytest.raises(ForeignFormatError) as caught:
        read_module(data)
    assert str(caught.value).startswith(f"not a WebAssembly module but {said}")
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, MalformedModuleError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert is_component(data) == (data == COMPONENT)


def test_a_compiled_artifact_of_wasmtime_is_told_from_other_elf_files() -> None:
    """It is an ELF file, too, but it names the module that it was made from as the remedy."""
    artifact = wasmtime.Module(wasmtime.Engine(), "(module)").serialize()
    assert "a compiled artifact of wasmtime" in (foreign(bytes(artifact)) or "")


@given(st.binary(max_size=2000))
def test_any_bytes_are_named(data: bytes) -> None:
    """No bytes make it fail, and no message has control characters or is long."""
    what = foreign(data)
    assert (what is None) == data.startswith(HEADER)
    assert what is None or (what.isprintable() and len(what) < 400)
