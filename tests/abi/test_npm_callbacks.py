"""Modules from npm whose host functions call them back give what their own JavaScript gives.

wasm-bindgen passes JavaScript's objects as numbers. The guest asks the host for what is in them,
and the host allocates memory in the guest for its answer, by `__wbindgen_malloc`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from abi.npm import node
from attrs import frozen
from engine.support import quiet_cache

from trio_wasmcache import (
    Exports,
    FuncType,
    Guest,
    HostFunction,
    Invoke,
    MiB,
    TrapError,
    current_lease,
)

U32 = "u32"


class Objects:
    """What the guest knows by number, as in wasm-bindgen's JavaScript."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._next = 1000

    def add(self, value: Any) -> int:
        self._next += 1
        self._objects[self._next] = value
        return self._next

    def get(self, number: int) -> Any:
        return self._objects[number]

    def drop(self, number: int) -> Any:
        return self._objects.pop(number)

    def __len__(self) -> int:
        return len(self._objects)

    @contextlib.contextmanager
    def lent(self, value: Any) -> Iterator[int]:
        """Lend an object for one call."""
        number = self.add(value)
        try:
            yield number
        finally:
            self.drop(number)


def host(
    fn: Callable[..., Any], params: int, results: int = 1, *, reentrant: bool = False
) -> HostFunction:
    """Make a host function of 32-bit numbers."""
    return HostFunction(fn, (U32,) * params, (U32,) * results, reentrant=reentrant)


def text_at(at: int, size: int) -> str:
    return current_lease().memory.read(at, size).decode()


def throw(at: int, size: int = 0) -> None:
    raise RuntimeError(text_at(at, size))


def giving_text(malloc: Callable[[int], Awaitable[int]], text: Callable[[int], Any]) -> Any:
    """Make what puts a text into the guest, and its address and size where the guest says."""

    async def give(where: int, number: int) -> None:
        data = text(number).encode()
        at = await malloc(len(data))
        memory = current_lease().memory
        memory.write(at, data)
        memory.write(where, struct.pack("<II", at, len(data)))

    return give


def as_json(value: Any) -> str:
    """Write JSON as JavaScript does."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


async def brotli_malloc(size: int) -> int:
    """Allocate in the guest of an old wasm-bindgen."""
    return int(await current_lease().invoke("__wbindgen_malloc", size)) & 0xFFFFFFFF


async def resvg_malloc(size: int) -> int:
    """Allocate in the guest of a newer one, which wants the alignment, too."""
    return int(await current_lease().invoke("__wbindgen_malloc", size, 1)) & 0xFFFFFFFF


class Bindgen:
    """What the ABIs here have in common: one call has one result in three or four words."""

    signature = FuncType()
    arity = 2
    lower = lift = None

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Any:
        return self

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"two values, please, not {values!r:.100}")


@frozen
class BrotliAbi(Bindgen):
    """brotli-wasm's `compress(bytes, options)`."""

    objects: Objects
    signature = FuncType(("i32",) * 4)

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, bytes]:
        data, options = values
        memory = guest.memory
        assert memory is not None
        where = yield Invoke("__wbindgen_add_to_stack_pointer", (-16,))
        at = yield Invoke("__wbindgen_malloc", (len(data),))
        memory.write(at, data)
        with self.objects.lent(options) as number:
            yield Invoke("compress", (where, at, len(data), number))
        start, size, error, failed = struct.unpack("<4I", memory.read(where, 16))
        yield Invoke("__wbindgen_add_to_stack_pointer", (16,))
        if failed:
            raise ValueError(self.objects.drop(error))
        packed = memory.read(start, size)
        yield Invoke("__wbindgen_free", (start, size))
        return packed


def brotli_imports(objects: Objects, panics: list[str]) -> dict[str, dict[str, HostFunction]]:
    """Return the functions that brotli-wasm's JavaScript provides."""

    async def error(at: int, size: int) -> None:
        panics.append(text_at(at, size))
        await current_lease().invoke("__wbindgen_free", at, size)

    serialize = giving_text(brotli_malloc, lambda number: as_json(objects.get(number)))
    return {
        "__wbindgen_placeholder__": {
            "__wbindgen_is_undefined": host(lambda number: objects.get(number) is None, 1),
            "__wbindgen_is_object": host(
                lambda number: isinstance(objects.get(number), (dict, list)), 1
            ),
            "__wbindgen_string_new": host(lambda at, n: objects.add(text_at(at, n)), 2),
            "__wbindgen_error_new": host(lambda at, n: objects.add(text_at(at, n)), 2),
            "__wbindgen_json_serialize": host(serialize, 2, 0, reentrant=True),
            "__wbg_new_693216e109162396": host(lambda: objects.add("stack"), 0),
            "__wbg_stack_0ddaca5d1abfb52f": host(
                giving_text(brotli_malloc, objects.get), 2, 0, reentrant=True
            ),
            "__wbg_error_09919627ac0992f5": host(error, 2, 0, reentrant=True),
            "__wbindgen_object_drop_ref": host(lambda number: objects.drop(number) and None, 1, 0),
            "__wbindgen_throw": host(throw, 2, 0),
        }
    }


async def test_brotli_with_options(packages: Path) -> None:
    """The guest asks for its options as JSON, which the host allocates in it."""
    texts = ["", "a", "Grüße aus Köln " * 400, "\0\1\2" * 3000]
    options = [{"quality": 1}, {"quality": 5}, {"quality": 11}, {}, None]
    expected = node(
        packages,
        """const brotli = require("brotli-wasm"), [texts, options] = values;
           const pack = (text, one) =>
             Buffer.from(brotli.compress(Buffer.from(text), one ?? undefined)).toString("hex");
           const packed = texts.map((text) => options.map((one) => pack(text, one)));
           let words = ""; console.error = (text) => words += text;
           try { pack("a", { quality: "?" }) } catch (error) { words += error }
           answer([packed, words]);""",
        texts,
        options,
    )
    objects, panics = Objects(), list[str]()
    # With quality 11 it takes some 70 MiB.
    async with quiet_cache(memory_limit=256 * MiB, max_running_size=1024 * MiB) as cache:
        compress = await cache.register(
            "compress",
            packages / "brotli-wasm/pkg.node/brotli_wasm_bg.wasm",
            args=("bytes", "options"),
            returns="bytes",
            abi=BrotliAbi(objects),
            called_on_null=True,
            imports=brotli_imports(objects, panics),
        )
        async with compress.acquire() as lease:
            found = [
                [(await lease.call(text.encode(), one)).hex() for one in options] for text in texts
            ]
            assert found == expected[0]
            # A panic: the guest has the host print a message and free it, and then traps.
            with pytest.raises(TrapError, match="unreachable"):
                await lease.call(b"a", {"quality": "?"})
            (panic,) = panics
            assert panic.splitlines()[0] == expected[1].splitlines()[0]
            assert expected[1].endswith("unreachable")
        async with compress.acquire() as lease:
            data = [text.encode() for text in texts]
            packed = await lease.map([data, [{"quality": 5}] * len(data)])
            assert [one.hex() for one in packed] == [one[1] for one in expected[0]]
            size = lease.size
            for _ in range(50):
                await lease.call(data[2], options[1])
            assert lease.size == size
        assert not len(objects)


@frozen
class ResvgAbi(Bindgen):
    """resvg: `new Resvg(svg, options).render().asPng()`, in one call."""

    objects: Objects
    signature = FuncType(("i32",) * 5)

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, bytes]:
        svg, options = values
        memory = guest.memory
        assert memory is not None
        where = yield Invoke("__wbindgen_add_to_stack_pointer", (-16,))
        data = json.dumps(options).encode()
        at = yield Invoke("__wbindgen_malloc", (len(data), 1))
        memory.write(at, data)

        def result() -> int:
            found, error, failed = struct.unpack("<3I", memory.read(where, 12))
            if failed:
                raise ValueError(self.objects.drop(error))
            return int(found)

        yield Invoke("resvg_new", (where, self.objects.add(svg), at, len(data), 0))
        image = result()
        yield Invoke("resvg_render", (where, image))
        rendered = result()
        yield Invoke("renderedimage_asPng", (where, rendered))
        png = self.objects.drop(result())
        yield Invoke("__wbg_renderedimage_free", (rendered,))
        yield Invoke("__wbg_resvg_free", (image,))
        yield Invoke("__wbindgen_add_to_stack_pointer", (16,))
        return bytes(png)


def resvg_imports(objects: Objects) -> dict[str, dict[str, HostFunction]]:
    """Return the functions that resvg's JavaScript provides, for SVG as text without fonts."""

    async def string_get(where: int, number: int) -> None:
        value = objects.get(number)
        if isinstance(value, str):
            await give(where, number)
        else:
            current_lease().memory.write(where, bytes(8))

    def view(number: int, at: int, size: int) -> int:
        return objects.add(current_lease().memory.read(at, size))

    def put(target: int, source: int, at: int) -> None:
        data = objects.get(source)
        objects.get(target)[at : at + len(data)] = data

    def push(number: int, value: int) -> int:
        objects.get(number).append(objects.get(value))
        return len(objects.get(number))

    give = giving_text(resvg_malloc, objects.get)
    return {
        "wbg": {
            "__wbg_new_28c511d9baebfa89": host(lambda at, n: objects.add(text_at(at, n)), 2),
            "__wbindgen_memory": host(lambda: objects.add("memory"), 0),
            "__wbg_buffer_12d079cc21e14bdb": host(lambda number: objects.add("buffer"), 1),
            "__wbg_newwithbyteoffsetandlength_aa4a17c33a06e5cb": host(view, 3),
            "__wbindgen_object_drop_ref": host(lambda number: objects.drop(number) and None, 1, 0),
            "__wbg_new_63b92bc8671ed464": host(
                lambda number: objects.add(bytearray(objects.get(number))), 1
            ),
            "__wbg_values_839f3396d5aac002": host(throw, 1),
            "__wbg_next_196c84450b364254": host(throw, 1),
            "__wbg_done_298b57d23c0fc80c": host(throw, 1),
            "__wbg_value_d93c65011f51a456": host(throw, 1),
            "__wbg_instanceof_Uint8Array_2b3bbecd033d19f6": host(
                lambda number: isinstance(objects.get(number), (bytes, bytearray)), 1
            ),
            "__wbindgen_string_get": host(string_get, 2, 0, reentrant=True),
            "__wbg_new_16b304a2cfa7ff4a": host(lambda: objects.add([]), 0),
            "__wbindgen_string_new": host(lambda at, n: objects.add(text_at(at, n)), 2),
            "__wbg_push_a5b05aedc7234f9f": host(push, 2),
            "__wbg_length_c20a40f15020d68a": host(lambda number: len(objects.get(number)), 1),
            "__wbg_set_a47bac70306a19a7": host(put, 3, 0),
            "__wbindgen_throw": host(throw, 2, 0),
        }
    }


SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="120" height="80" viewBox="0 0 120 80">
  <defs><linearGradient id="g"><stop offset="0" stop-color="#fc0"/>
  <stop offset="1" stop-color="#06c"/></linearGradient></defs>
  <rect width="120" height="80" rx="12" fill="url(#g)"/>
  <path d="M10 70 C 40 10, 80 10, 110 70 Z" fill="none" stroke="#fff" stroke-width="4"/>
  <circle cx="60" cy="36" r="14" fill="#c03" opacity="0.7"/></svg>"""
# SHA-256 of the PNGs, made by node 20 and @resvg/resvg-wasm 2.6.2.
PICTURES = [
    "623b736a5ecf8e500e4a7a96809543fe70cd0c2cd8bda7744e83757e1fa9255e",
    "e81aa26e85bea18b2411dcdd0f7e0e4d5a891f342dab1c88be9f4a4a984360bf",
]


async def test_resvg_draws_a_picture(packages: Path) -> None:
    """The guest asks for the SVG as text, which the host allocates in it."""
    options: list[dict[str, Any]] = [{}, {"fitTo": {"mode": "width", "value": 300}}]
    expected = node(
        packages,
        """const { readFileSync } = require("fs"), resvg = require("@resvg/resvg-wasm");
           await resvg.initWasm(readFileSync(require.resolve("@resvg/resvg-wasm/index_bg.wasm")));
           const draw = (one) => new resvg.Resvg(values[0], one).render().asPng();
           answer(values[1].map((one) => Buffer.from(draw(one)).toString("hex")));""",
        SVG,
        options,
    )
    objects = Objects()
    async with quiet_cache(memory_limit=64 * MiB, max_instance_size=64 * MiB) as cache:
        draw = await cache.register(
            "draw",
            packages / "@resvg/resvg-wasm/index_bg.wasm",
            args=("svg", "options"),
            returns="bytes",
            export="resvg_new",
            abi=ResvgAbi(objects),
            imports=resvg_imports(objects),
        )
        async with draw.acquire() as lease:
            found = [await lease.call(SVG, one) for one in options]
            assert [png.hex() for png in found] == expected
            assert [hashlib.sha256(png).hexdigest() for png in found] == PICTURES
            with pytest.raises(ValueError, match="SVG data parsing failed"):
                await lease.call("<svg", {})
        assert len(objects) <= 3
