"""The ABI of policies of Open Policy Agent, compiled to WebAssembly (version 1.2 and later)."""

import json
from collections.abc import Generator, Sequence
from typing import Any

from trio_wasmcache import AbiError, Exports, FuncType, Guest, Invoke, Memory

PAGE = 65536


class OpaAbi:
    """Take one document and return the decision of an entrypoint; None where it is undefined.

    The data is loaded into each instance once. Of a decision nothing stays: the next one begins
    with the same heap.
    """

    arity = 1
    lower = lift = None
    signature = FuncType(("i32",) * 7, ("i32",))

    def __init__(self, entrypoint: str, data: object = None) -> None:
        self.entrypoint = entrypoint
        self.data = json.dumps({} if data is None else data).encode()

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> "OpaAbi":
        return self

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(f"a policy decides about one document, got {len(values)}")

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        text = json.dumps(values[0]).encode()
        memory = guest.memory
        assert memory is not None
        if "opa" not in guest.state:  # a new instance, or one that was reset
            guest.state["opa"] = yield from self.begin(guest, memory)
        entrypoint, data, heap = guest.state["opa"]
        end = heap + len(text)
        if end > memory.size:
            memory.grow(-(-(end - memory.size) // PAGE))
        memory.write(heap, text)
        found = yield Invoke("opa_eval", (0, entrypoint, data, heap, len(text), end, 0))
        rows = loaded(guest, found)
        return rows[0]["result"] if rows else None

    def begin(self, guest: Guest, memory: Memory) -> Generator[Invoke, Any, tuple[int, int, int]]:
        """Load the data; return the entrypoint's number, the data's address, and the heap's."""
        at = (yield Invoke("opa_malloc", (len(self.data),))) & 0xFFFFFFFF
        memory.write(at, self.data)
        data = yield Invoke("opa_json_parse", (at, len(self.data)))
        heap = (yield Invoke("opa_heap_ptr_get", ())) & 0xFFFFFFFF
        names = loaded(guest, (yield Invoke("opa_json_dump", ((yield Invoke("entrypoints", ())),))))
        if self.entrypoint not in names:
            raise ValueError(f"no entrypoint {self.entrypoint!r}; there are {', '.join(names)}")
        return names[self.entrypoint], data, heap


def loaded(guest: Guest, address: int) -> Any:
    """Return what the JSON text at an address says; a zero ends it."""
    memory = guest.memory
    assert memory is not None
    at, text = address & 0xFFFFFFFF, b""
    try:
        while b"\0" not in text:
            begin = at + len(text)
            text += memory.read(begin, max(1, min(4096, memory.size - begin)))
        text = text[: text.index(b"\0")]
        guest.tally.add(20 * len(text))  # a list of empty lists takes this much
        return json.loads(text)
    except (IndexError, ValueError, RecursionError) as error:
        raise AbiError(f"the policy returned no JSON: {error}") from None
