"""The Extism ABI: plugins that were built with any of Extism's plug-in development kits.

A plugin's functions take no wasm values and return a status. The argument and the result are blocks
of Extism's memory, which the kernel manages (see `_core/wasm/extism_kernel`): a generated part in
the store of each instance, which provides the functions that the plugin imports.

1. A call writes its argument and the fields of the call into the kernel's memories, calls the
   export, and reads the fields and the result. That takes one call of wasm.
2. The kernel's books are out of the plugin's reach, so that they can be trusted. What is in a block
   is the plugin's.
3. A plugin that reports an error has returned in order: its instance, and its variables, go on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, cast, final, get_args

from attrs import Attribute, field, fields, frozen

from .._core.config import WASM_PAGE, MiB
from .._core.costs import ITEM_FUEL, copy_fuel
from .._core.errors import LinkError, PluginError, SignatureError
from .._core.tally import FREE
from .._core.text import escaped, quoted
from .._core.wasm.admission import import_name, signature
from .._core.wasm.extism_kernel import (
    BLOCK,
    CALL_AT,
    FIRST,
    LOG_LEVELS,
    OFF,
    REPLACEABLE,
    VARS_LIMIT,
    BlockFunction,
    CallBooks,
    KernelSettings,
    block_size,
    kernel,
)
from .._core.wasm.graph import FromHost, FromPart, Layer, Part
from .._core.wasm.reader import FuncType, ModuleInfo, read_module
from .._public import public
from .base import (
    BY_STEPS,
    Binding,
    Exports,
    Guest,
    GuestPart,
    Invoke,
    LayeredAbi,
    Parts,
    Steps,
    Value,
)
from .bytes_and_text import BUFFERS, lift_buffer, lower_buffer
from .plain import TYPES, shown, wrong_count

KERNEL: Final = "extism"
"""Name of the kernel among the parts of an instance."""
BLOCKS, BOOKS = "memory", "books"
"""Names of its memories."""
ENV, USER = "extism:host/env", "extism:host/user"
"""Modules from which a plugin imports the kernel's functions, and those of the application."""
CONFIG_LIMIT: Final = MiB
"""Bytes of keys and values of a config, at most."""
TEXT_LIMIT: Final = 2048
"""Bytes of an error's text that are read, at most."""
# Results of up to this many bytes are read without a `Call` (see `Binding.direct`).
DIRECT_SIZE: Final = 4096

LogLevel = Literal["trace", "debug", "info", "warn", "error", "off"]
_FUNCTIONS: Final = ("log_trace", "log_debug", "log_info", "log_warn", "log_error")


def _texts(name: str, value: Mapping[str, Any], kinds: tuple[type, ...]) -> Mapping[str, Any]:
    types = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(value, Mapping):
        raise TypeError(
            f"ExtismAbi: {name} must be a mapping of str to {types}, got {shown(value)}"
        )
    items = dict(value)
    for key, one in items.items():
        if not isinstance(key, str) or not isinstance(one, kinds):
            got = (
                f"{type(one).__name__} for {shown(key)}"
                if isinstance(key, str)
                else f"the key {shown(key)} of type {type(key).__name__}"
            )
            raise TypeError(f"ExtismAbi: {name} must be a mapping of str to {types}, got {got}")
        for text in (key, one):
            if isinstance(text, str):
                try:
                    str.encode(text)
                except UnicodeEncodeError as error:
                    raise ValueError(
                        f"ExtismAbi: {name} has a text that has no UTF-8: {error.reason}"
                    ) from None
    return MappingProxyType(items)


def _as_config(value: Mapping[str, str]) -> Mapping[str, str]:
    return _texts("config", value, (str,))


def _as_vars(value: Mapping[str, bytes | str]) -> Mapping[str, bytes]:
    given = _texts("vars", value, (bytes, str))
    return MappingProxyType(
        {key: one.encode() if isinstance(one, str) else bytes(one) for key, one in given.items()}
    )


def _items(value: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(value.items())


def _keys(value: Mapping[str, Any]) -> str:
    """Return keys only: values may be secrets, and a repr may be logged."""
    return "{" + ", ".join(f"{shown(key)}: ..." for key in value) + "}"


@public
@frozen
class ExtismAbi(LayeredAbi):
    """An `Abi` for plugins of Extism (https://extism.org), built with any of its kits.

    ``abi="extism"`` is one without config and variables.

    .. code-block::

        await cache.register(
            "count_vowels", wasm, args=("str",), returns="str", abi=ExtismAbi(config={"lang": "en"})
        )

    The argument is one `bytes` or `str` (UTF-8), or none; so is the result. The functions of
    ``extism:host/env`` are a part of each instance, within the limits of its memories; with
    `memory_limit`, the plugin's own memory and Extism's get about half each.

    **Errors.** A plugin that reports an error, or returns a status other than 0, raises
    `PluginError`; the instance is intact. If it traps after it has reported an error, the message
    has that, too. It traps if it has no memory left for a block, if its output is not inside a
    block, or if it gives a function an offset at which no block begins. It also traps if it makes
    more than 65,536 blocks in one call without freeing some. Freeing a block twice, logging what is
    no block, and setting an output at offset 0 have no effect.

    **Variables** live as long as the instance: with ``isolation="reuse"`` from lease to lease,
    until it is evicted. With ``"reset"`` and ``"fresh"``, each lease begins with `vars`. Instances
    do not share them, and each export that is registered has instances of its own.

    **Host functions** of ``extism:host/user`` are given by `imports`. With ``"str"`` or ``"bytes"``
    among its `params` and `results`, a `HostFunction` takes and returns the contents of blocks,
    where the plugin has their offsets. An offset that is none gives b"" or "", and None may be
    returned for it. A reentrant one can't have these types: it takes the offset as ``"i64"``.

    **HTTP.** A plugin has no network, so a request raises `TrapError`. To serve requests, give
    ``{"extism:host/env": {"http_request": HostFunction(fetch, ("bytes", "bytes"), ("bytes",))}}``:
    `fetch` takes the request as JSON, and its body. With results ``("bytes", "i32", "str")`` it
    returns the status and the headers (JSON), too. The functions for config, variables and the log
    can be replaced in the same way.

    **Log.** Lines of `log_level` or above go to where `Wasi` sends standard error. A plugin that
    asks for the level gets ``"info"`` by default, where Extism's own host logs nothing and says so.

    **Start.** As with Extism, a new instance first runs its export ``hs_init``,
    ``__wasm_call_ctors`` or ``_initialize``.

    Raises:
        TypeError: `config` or `vars` is not such a mapping.
        ValueError: they have more than 1 MiB, or a text without UTF-8; or `log_level` is no level.
    """

    config: Mapping[str, str] = field(factory=dict, converter=_as_config, eq=_items, repr=_keys)
    """Texts that the plugin can read by their names; at most 1 MiB of UTF-8."""
    vars: Mapping[str, bytes | str] = field(factory=dict, converter=_as_vars, eq=_items, repr=_keys)
    """Variables with which each instance begins, and which the plugin can change. A str is given as
    UTF-8. All variables of an instance have at most 1 MiB; each counts 48 bytes in addition."""
    log_level: LogLevel = field(default="info", kw_only=True)
    """The lowest level that is logged, which the plugin can ask for: ``"trace"``, ``"debug"``,
    ``"info"``, ``"warn"``, ``"error"`` or ``"off"``."""

    takes_blocks: ClassVar[bool] = True
    """Whether host functions may have `str` and `bytes` among their types."""

    def __reduce__(self) -> tuple[object, ...]:
        # Not by its fields: a view of a dict can't be pickled or copied.
        given = {attribute.name: getattr(self, attribute.name) for attribute in fields(ExtismAbi)}
        return _made, ({**given, "config": dict(self.config), "vars": dict(self.vars)},)

    @config.validator
    def _check_config(self, _: object, value: Mapping[str, str]) -> None:
        size = sum(len(key.encode()) + len(one.encode()) for key, one in value.items())
        if size > CONFIG_LIMIT:
            raise ValueError(f"ExtismAbi: config may have {CONFIG_LIMIT} bytes, got {size}")

    @vars.validator
    def _check_vars(self, _: object, value: Mapping[str, bytes]) -> None:
        size = KernelSettings(vars=_pairs(value)).vars_cost
        if size > VARS_LIMIT:
            raise ValueError(
                f"ExtismAbi: vars may have {VARS_LIMIT} bytes, with 48 for each, got {size}"
            )

    @log_level.validator
    def _check_level(self, _: Attribute[object], value: object) -> None:
        if value not in get_args(LogLevel):
            raise ValueError(
                f"ExtismAbi: log_level must be one of {quoted(get_args(LogLevel))}, got "
                f"{shown(value)}"
            )

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,  # noqa: ARG002 -- no type here has nulls
    ) -> Binding:
        """Return the binding for one function; `register` calls this.

        Args:
            function: name of the function, for messages.
            export: name of the export to be called.
            args: the type of the argument, ``"bytes"`` or ``"str"``, or none.
            returns: the type of the result, likewise.
            exports: the exports of the module.
            called_on_null: whether None may be an argument; no type here has nulls.

        Raises:
            SignatureError: a type is another one, there are several, or the export takes or returns
                something other than a status.
        """
        for noun, types in (("argument", args), ("result", returns)):
            if len(types) > 1 or not set(types) <= set(BUFFERS):
                raise SignatureError(
                    f"{function}: a function of an Extism plugin has one {noun}, bytes or str, or "
                    f"none, not {quoted(types)}"
                )
        kind = exports.functions[export]
        if kind.params or kind.results not in ((), ("i32",)):
            raise SignatureError(
                f"{function}: {shown(export)} is {signature(kind)}, and a function of an Extism "
                "plugin takes nothing and returns a status, () -> (i32), or nothing"
            )
        return ExtismBinding(function, export, tuple(args), tuple(returns), kind)

    @property
    def supplies(self) -> Mapping[tuple[str, str], FuncType]:
        """{module and name of an import: type} of the kernel's functions."""
        return _kernel_types()

    def layer(
        self, what: str, info: ModuleInfo, hosts: Mapping[tuple[str, str], Any], first: int
    ) -> Layer:
        """Return the kernel for a plugin.

        Args:
            what: name of the function, for messages.
            info: what the sections of the plugin say.
            hosts: {module and name of an import: (index, host function)} of those that are given.
            first: index of the first of `Layer.hosts`.

        Raises:
            LinkError: a host function is given that can't replace the kernel's.
        """
        types = _kernel_types()
        supplies = {name: FromPart(KERNEL, name[1]) for name in types if name not in hosts}
        functions, own = (
            [],
            [
                KernelHost("fail", FuncType(("i32", "i64", "i64"))),
                KernelHost("log", FuncType(("i32", "i64", "i64"))),
                KernelHost("deliver", FuncType(("i32", "i64"))),
            ],
        )
        for item in info.imports:
            name = item.module, item.name
            _, host = hosts.get(name, (None, None))
            if host is None or not isinstance(item.type, FuncType):
                continue
            if name in types:
                _check_replaced(what, name, host, item.type)
            if getattr(host, "blocks", False) and name not in supplies:
                one = block_function(name, host.params, host.results)
                supplies[name] = FromPart(KERNEL, one.export)
                functions.append(one)
                own.append(KernelHost("call", raw_type(one), host))
        level = LOG_LEVELS.index(self.log_level) if self.log_level != "off" else OFF
        config, vars = _pairs(_encoded(self.config)), _pairs(self.vars)
        wasm = kernel(KernelSettings(config, vars, level, tuple(functions)))
        part = read_module(wasm)
        names = [*("fail", "log", "deliver"), *(f"call:{n}" for n in range(len(functions)))]
        wiring = {("host", name): FromHost(first + n) for n, name in enumerate(names)}
        return Layer(
            (Part(KERNEL, wasm, part, wiring),),
            supplies,
            hosts=tuple(own),
            memories={first + number: KERNEL for number in range(len(own))},
        )

    def starts(self, info: ModuleInfo) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the exports to call when an instance starts, as Extism does it.

        Args:
            info: what the sections of the plugin say.
        """
        found: list[tuple[str, tuple[int, ...]]] = []
        if (haskell := _function(info, "hs_init")) is not None:
            if _function(info, "_initialize") == FuncType():
                found.append(("_initialize", ()))
            if haskell.params == ("i32", "i32"):
                found.append(("hs_init", (0, 0)))
            return tuple(found)
        for name in ("__wasm_call_ctors", "_initialize"):
            kind = _function(info, name)
            if kind is not None:
                return ((name, ()),) if kind == FuncType() else ()
        return ()


def _function(info: ModuleInfo, name: str) -> FuncType | None:
    export = info.export(name)
    return info.functions[export.index] if export is not None and export.kind == "func" else None


def _made(given: Mapping[str, Any]) -> ExtismAbi:
    return ExtismAbi(**given)


def _encoded(texts: Mapping[str, str]) -> Mapping[str, bytes]:
    return {key: text.encode() for key, text in texts.items()}


def _pairs(items: Mapping[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((key.encode(), value) for key, value in items.items())


@functools.cache
def _kernel_types() -> Mapping[tuple[str, str], FuncType]:
    info = read_module(kernel(KernelSettings()))
    return MappingProxyType(
        {
            (ENV, export.name): info.functions[export.index]
            for export in info.exports
            if export.kind == "func"
        }
    )


def _check_replaced(what: str, name: tuple[str, str], host: Any, wanted: FuncType) -> None:
    """Raise `LinkError` if a host function can't be used instead of the kernel's of that name."""
    if name[1] not in REPLACEABLE:
        raise LinkError(
            f"{what}: {import_name(*name)} is a function of Extism's kernel, in place of which no "
            f"host function can be given; there are {', '.join(REPLACEABLE)}"
        )
    given = host.type
    if name[1] == "http_request" and given.results[1:] in (("i32",), ("i32", "i64")):
        given = FuncType(given.params, given.results[:1])
    if given != wanted:
        raise LinkError(
            f"{what}: the module imports {import_name(*name)} as {signature(wanted)}, but "
            f"{host.misfit(wanted)}"
        )


def block_function(
    name: tuple[str, str], params: Sequence[str], results: Sequence[str]
) -> BlockFunction:
    """Return what the kernel has to know of a host function with these types, plain or buffers."""
    http = name == (ENV, "http_request")
    return BlockFunction(
        "http_request" if http else name[1] if name[0] == ENV else ":".join(name),
        _kernel_kinds(params),
        _kernel_kinds(results),
        http,
    )


def _kernel_kinds(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(BLOCK if name in BUFFERS else TYPES[name].wasm for name in names)


def raw_type(function: BlockFunction) -> FuncType:
    """Return the type of the host function that the kernel calls: see `kernel`."""
    params: list[str] = []
    for kind in function.params:
        params += ("i64", "i64") if kind == BLOCK else (kind,)
    return FuncType(
        tuple(params), tuple("i64" if kind == BLOCK else kind for kind in function.results)
    )


@frozen
class KernelHost:
    """A host function that the kernel imports; `_runtime/extism` has what it does."""

    name: Literal["fail", "log", "deliver", "call"]
    type: FuncType
    function: Any = None
    """`HostFunction` of the application, for ``call``."""


@frozen(eq=False)
class ExtismBinding:
    """The ABI, bound to one function of a plugin: a `Binding`."""

    what: str
    """The function's name for messages."""
    export: str
    args: tuple[str, ...]
    returns: tuple[str, ...]
    signature: FuncType

    lower = lift = None
    counts_results = True

    @property
    def arity(self) -> int:
        return len(self.args)

    @property
    def got(self) -> str:
        """The beginning of messages about a result."""
        return f"{self.what} returned"

    def place(self, number: int) -> str:
        """Return the name of an argument for messages."""
        return f"argument {number} of {self.what}"

    def explain(self, values: tuple[object, ...]) -> Exception:
        if len(values) != len(self.args):
            return wrong_count(self.what, self.args, values)
        try:
            with ExitStack() as views:
                self._data(values, views)
        except (TypeError, ValueError, OverflowError) as error:
            return error
        return TypeError(f"{self.what}: {shown(values)} can't be passed")

    def steps(self, guest: Guest, values: tuple[object, ...]) -> Steps:
        """Perform one call; see `Binding.steps`."""
        kernel = _kernel_of(guest)
        with ExitStack() as views:
            data = self._data(values, views)
            size = len(data)
            blocks = kernel.memory(BLOCKS)
            missing = FIRST + block_size(size) - blocks.size
            if missing > 0:
                blocks.grow(-(-missing // WASM_PAGE))
            blocks.write(FIRST, data)
        kernel.memory(BOOKS).write(CALL_AT, CallBooks.begin(size))
        result = yield Invoke(self.export, ())
        return self.leave(guest, result)

    def _data(self, values: tuple[object, ...], views: ExitStack) -> bytes | memoryview:
        if not self.args:
            return b""
        return lower_buffer(self.place(1), self.args[0], values[0], views)

    def leave(self, guest: Guest, result: Value) -> Value:
        """Return the Python value of a call that is over, or raise the plugin's error."""
        kernel = _kernel_of(guest)
        ended = CallBooks.read(kernel.memory(BOOKS).read(CALL_AT, CallBooks.SIZE))
        if ended.error or result:
            raise _error(_text(kernel, ended), result or 0)
        if not self.returns:
            return None
        # The kernel has checked that it is inside a block.
        data = kernel.memory(BLOCKS).read(ended.output, ended.output_size)
        return lift_buffer(self.got, self.returns[0], data, guest.tally)

    def direct(self, native: Parts) -> ExtismDirect:
        """Return how values cross in most calls; see `Direct`."""
        return ExtismDirect(self, native)

    def reported_error(self, guest: Parts) -> str:
        """Return the error that a plugin had reported before its call failed in another way."""
        kernel = guest.part(KERNEL)
        ended = CallBooks.read(kernel.memory(BOOKS).read(CALL_AT, CallBooks.SIZE))
        return escaped(_text(kernel, ended))


@final
class ExtismDirect:
    """How values cross through the first pages of the kernel's memories, in one instance.

    Args:
        binding: the ABI, bound to a function.
        native: the instance.
    """

    __slots__ = ("_args", "_blocks", "_books", "_returns")

    def __init__(self, binding: ExtismBinding, native: Parts) -> None:
        kernel = native.part(KERNEL)
        self._blocks, self._books = kernel.window(BLOCKS), kernel.window(BOOKS)
        self._args, self._returns = binding.args, binding.returns

    def lower(self, values: tuple[object, ...]) -> bool:
        data = b""
        if len(values) != len(self._args):
            return False
        if values:
            (value,) = values
            # Only of these very types, which have no code of their own.
            if type(value) is bytes and self._args == ("bytes",):
                data = value
            elif type(value) is str and self._args == ("str",):
                try:
                    data = value.encode()
                except UnicodeEncodeError:
                    return False
            else:
                return False
        size = len(data)
        blocks = self._blocks.view
        if FIRST + size > len(blocks):
            return False
        begin = CallBooks.begin(size)
        blocks[FIRST : FIRST + size] = data
        self._books.view[CALL_AT : CALL_AT + len(begin)] = begin
        return True

    def lift(self, result: Value) -> Value:
        at, size, error, _ = CallBooks.ENDED.unpack_from(self._books.view, CallBooks.ENDED_AT)
        if error or result:
            return BY_STEPS
        if not self._returns:
            return None, 0
        if size > DIRECT_SIZE:
            return BY_STEPS
        blocks = self._blocks.view
        if at + size > len(blocks):
            return BY_STEPS
        data = bytes(blocks[at : at + size])
        fuel = ITEM_FUEL + (copy_fuel(size) if size > FREE else 0)
        if self._returns == ("bytes",):
            return data, fuel
        try:
            return data.decode(), fuel
        except UnicodeDecodeError:
            return BY_STEPS


def _kernel_of(guest: Guest) -> GuestPart:
    return cast("Parts", guest).part(KERNEL)


def _text(kernel: GuestPart, ended: CallBooks) -> str:
    if not ended.error:
        return ""
    data = kernel.memory(BLOCKS).read(ended.error, min(ended.error_size, TEXT_LIMIT))
    return data.decode(errors="replace")


def _error(text: str, status: int) -> PluginError:
    if not text:
        return PluginError(f"the plugin returned status {status}", status=status)
    words = escaped(text)
    return PluginError(f"the plugin reported an error: {words}", status=status, text=text)
