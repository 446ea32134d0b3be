"""Runs logged calls again, for ``python -m trio_wasmcache again``: same result, fuel and trap?

1. Everything in the log may be a stranger's: values are made by `tagged` alone, and every text that
   is shown is made printable.
2. No function of the application runs. The guest gets the answers of its host from the log, and the
   module must be the one of the log, by its digest.
3. Each call gets a new instance.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar, final

import trio
from attrs import Factory, define, frozen

from ._abi import ABIS
from ._abi.base import Abi
from ._cache.cache import InstanceCache
from ._cache.lease import Function
from ._cache.open import open_with
from ._core.answers import MAX_CALL, MAX_START, Answer, from_json
from ._core.config import CacheConfig, MiB
from ._core.errors import WasmCacheError, WitError
from ._core.events import Replayable, Stamped
from ._core.keys import MAX_NAME_LENGTH, FunctionKey, normalise_type
from ._core.tagged import UNKNOWN, TooLargeError, UnreadableError, decode, dumps, encode, loads
from ._core.text import printable
from ._core.tiers import STACKS
from ._engine.wasmtime.engine import WasmtimeEngine
from ._engine.wasmtime.text import to_wasm
from ._log import NoLogWriter
from ._runtime.host import HostFunction, HostGlobal, HostMemory, HostTable, Importable
from ._runtime.playing import DivergedError, HostError, Player
from ._runtime.recording import COMPONENT, OWN, RECOGNISED, place_of, reason_of
from ._runtime.versions import library_versions
from .report.cli.session import Session, print_json
from .report.reading.lines import MARK
from .report.reading.notes import NOTHING, cite, count

T = TypeVar("T")

SAME, DIFFERENT = 0, 1
VERDICTS: Final = ("same", "different", "not run")
MARKED: Final = MARK + b"replayable"
PROFILED: Final = ", profiled"
"""End of the name of a compiler whose code was profiled."""
MAX_TEXT: Final = 300
"""Characters that are shown of a value, or of a message."""
# Files of modules that are read, at most: as much as the largest that `register` takes by default.
MAX_MODULE: Final = 512 * MiB
ENOUGH: Final = 2**40
"""Bytes of a limit that is not to matter, as one instance is run at a time."""


@frozen
class Wanted:
    """Which calls are to be run."""

    request: int | None = None
    seq: int | None = None
    row: int | None = None
    cache: str | None = None

    def has(self, stamped: Stamped) -> bool:
        """Return whether an event is that of a call that is to be run."""
        event = stamped.event
        return (
            isinstance(event, Replayable)
            and self.request in (None, event.request)
            and self.seq in (None, stamped.seq)
            and self.row in (None, event.row)
            and self.cache in (None, stamped.cache)
        )


@final
@define(eq=False)
class Others:
    """The calls of a log that are not to be run."""

    number: int = 0
    numbered: int = 0
    """Number of those that have a request."""

    def take(self, event: Replayable) -> None:
        """Count a call."""
        self.number += 1
        self.numbered += event.request is not None

    def why(self, wanted: Wanted) -> str:
        """Return why there is no call to run."""
        if not self.number:
            return (
                "no call to run again is in the log: they are logged with "
                "CacheConfig(log_values=...), where 0.0 is for calls that fail, and 1.0 for all"
            )
        asked = [
            f"{name} {value}"
            for name in ("request", "seq", "row", "cache")
            if (value := getattr(wanted, name)) is not None
        ]
        text = (
            f"no such call in the log: it has {count(self.number, 'other call')}, none with "
            f"{' and '.join(asked)}. "
        )
        if wanted.request is not None and not self.numbered:
            return f"{text}They have no requests, as the log was written without log_uses"
        return f"{text}CacheConfig(log_values=0.0) logs calls that fail alone, and 1.0 all"


class RefusedError(Exception):
    """Raised for a call that can't be run again; the message says why."""


@final
@define(eq=False)
class Ran:
    """What became of one call."""

    stamped: Stamped
    event: Replayable
    refused: str | None = None
    """Why it was not run; None: it was."""
    differences: list[str] = Factory(list)
    now: dict[str, Any] = Factory(dict)
    """Its end now, in the fields of the event."""
    remarks: list[str] = Factory(list)

    @property
    def verdict(self) -> str:
        """``"same"``, ``"different"`` or ``"not run"``."""
        if self.refused is not None:
            return "not run"
        return "different" if self.differences else "same"

    def document(self) -> dict[str, Any]:
        """Return all for JSON."""
        event, stamped = self.event, self.stamped
        return {
            **{name: getattr(event, name) for name in ("function", "arg_types", "group")},
            "cache": stamped.cache,
            "seq": stamped.seq,
            "request": event.request,
            "row": event.row,
            "pristine": event.pristine,
            "verdict": self.verdict,
            "refused": self.refused,
            "differences": self.differences,
            "remarks": self.remarks,
            "log": {name: getattr(event, name) for name in ENDS},
            "now": {name: self.now.get(name) for name in ENDS},
        }


ENDS: Final = ("error", "trap", "trap_offset", "fuel", "result")
"""Fields of the event about how a call ended."""


def again(
    logs: Sequence[str], modules: Sequence[str], wanted: Wanted, *, as_json: bool = False
) -> int:
    """Run calls of some logs again, and print what became of them.

    Args:
        logs: files, as of `report`.
        modules: files of the modules.
        wanted: which calls.
        as_json: whether to print JSON.

    Returns:
        The exit status: 0 if all ended as in the log; 1 if some ended otherwise; 2 if some could
        not be run, or there are none.
    """
    session = Session(logs)
    others = Others()
    calls = [Ran(stamped, event) for stamped, event in find_calls(session, wanted, others)]
    if not calls:
        session.errors.print(others.why(wanted), style="red", markup=False)
        return NOTHING
    try:
        found = read_modules(modules)
    except OSError as error:
        text = f"{cite(str(error.filename))} can't be read: {error.strerror}"
        session.errors.print(text, style="red", markup=False)
        return NOTHING
    trio.run(run_all, calls, found)
    verdicts = Counter(ran.verdict for ran in calls)
    if as_json:
        document: dict[str, Any] = {"calls": [ran.document() for ran in calls]}
        document |= {"verdicts": dict(verdicts), "notes": session.notes.texts}
        print_json(document)
    else:
        for ran in calls:
            tell(ran, sys.stdout)
        if len(calls) > 1:
            each = ", ".join(f"{verdicts[name]:,} {name}" for name in VERDICTS if verdicts[name])
            print(f"{count(len(calls), 'call')}: {each}")
    if "not run" in verdicts:
        return NOTHING
    return DIFFERENT if "different" in verdicts else SAME


def find_calls(
    session: Session, wanted: Wanted, others: Others
) -> Iterator[tuple[Stamped, Replayable]]:
    """Yield the calls of a log that are to be run, each once; count the others."""
    seen: set[tuple[str, int]] = set()
    with session.bar():
        for block in session.reader.blocks():
            lines = [line for line in block if MARKED in line]
            for stamped in session.parser.records(lines):
                place = stamped.cache, stamped.seq
                if not isinstance(stamped.event, Replayable):
                    continue
                if not wanted.has(stamped):
                    others.take(stamped.event)
                elif place not in seen:
                    seen.add(place)
                    yield stamped, stamped.event
    session.tell()


def read_modules(paths: Sequence[str]) -> dict[str, bytes]:
    """Return {SHA-256: bytes} of modules in files, binary or text.

    Raises:
        OSError: a file can't be read.
    """
    found = {}
    for path in paths:
        with Path(path).open("rb") as file:
            data = file.read(MAX_MODULE)
        if data.lstrip()[:1] in (b"(", b";"):
            data = to_wasm(data.decode(errors="replace"))
        found[hashlib.sha256(data).hexdigest()] = data
    return found


async def run_all(calls: Sequence[Ran], modules: Mapping[str, bytes]) -> None:
    """Run calls, one after the other, each in a new instance.

    **Checkpoint:** between slices of the guests.
    **Cancellation:** all caches are closed.
    """
    async with AsyncExitStack() as stack:
        stages: dict[CacheConfig, Stage] = {}
        for ran in calls:
            try:
                config = config_of(ran.event)
                wasm = modules.get(ran.event.module_digest)
                if wasm is None:
                    raise RefusedError(_wrong_module(ran.event, modules))
                stage = stages.get(config)
                if stage is None:
                    player = Player()
                    engine = WasmtimeEngine(config.instance_stack_size, None, None, config.compiler)
                    opened = open_with(config, engine, NoLogWriter(), player)
                    stage = Stage(await stack.enter_async_context(opened), player)
                    stages[config] = stage
                await stage.run(ran, wasm)
            except RefusedError as error:
                ran.refused = printable(str(error), MAX_TEXT)


def _wrong_module(event: Replayable, modules: Mapping[str, bytes]) -> str:
    given = ", ".join(digest[:12] for digest in modules)
    return (
        f"it called the module with SHA-256 {printable(event.module_digest, 64)}, and --module "
        f"gives {given}: give the file that was registered"
    )


def config_of(event: Replayable) -> CacheConfig:
    """Return the limits under which a call is run again.

    Raises:
        RefusedError: the log has limits that no cache can have.
    """
    compiler: Any = _compiler(event)
    try:
        return CacheConfig(
            compiler=compiler,
            total_fuel=event.total_fuel,
            stack_size=event.stack_size_bytes // STACKS.get(compiler, 1),
            memory_limit=event.memory_limit_bytes,
            table_limit=event.table_limit_elements,
            max_result_size=event.max_result_size_bytes,
            max_wasm_size=MAX_MODULE,
            max_code_size=ENOUGH,
            max_instance_size=0,  # so each lease has a new one
        )
    except (TypeError, ValueError) as error:
        raise RefusedError(f"its limits can't be those of a cache: {error}") from None


def _compiler(event: Replayable) -> str:
    """Return the name of the compiler, also for a call that was profiled."""
    return event.compiler.removesuffix(PROFILED)


async def _unused(*_values: object) -> None:
    """Stand for a function of the application, for which the log answers."""
    raise AssertionError("a function of the application was called")


@final
@define(eq=False)
class Stage:
    """A cache in which calls with the same limits are run."""

    cache: InstanceCache
    player: Player
    _functions: dict[tuple[object, ...], Function] = Factory(dict)
    _names: set[tuple[str, str]] = Factory(set)

    async def run(self, ran: Ran, wasm: bytes) -> None:
        """Run a call, and note what is different.

        Raises:
            RefusedError: it can't be run.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped.
        """
        event = ran.event
        _refuse_cut(event)
        arguments = _decoded(tuple, "arguments", event.arguments)
        start = _answers("start_calls", event.start_calls)
        answers = _answers("host_calls", event.host_calls)
        function = await self._register(event, wasm)
        self.player.begin(start, answers)
        result, failure, fuel = None, None, None
        try:
            async with function.acquire() as lease:
                try:
                    result = await lease.call(*arguments)
                except Exception as error:
                    failure = error
                fuel = lease.fuel_consumed
        except WasmCacheError as error:
            if not isinstance(error.__cause__, DivergedError):
                raise RefusedError(f"its instance can't be made again: {error}") from None
            failure = error.__cause__
        except (DivergedError, HostError) as error:  # in the start of the instance
            failure = error
        self.player.end()
        _compare(ran, result, failure, fuel)
        if self.player.unused and not isinstance(failure, DivergedError):
            times = count(self.player.unused, "time")
            ran.differences.append(f"it called its host {times} less than in the log")
        _remark(ran)

    async def _register(self, event: Replayable, wasm: bytes) -> Function:
        key = (
            *(event.function, event.arg_types, event.returns, event.export, event.module_digest),
            *(event.isolation, event.setup),
        )
        known = self._functions.get(key)
        if known is not None:
            return known
        options = _options(event)
        try:
            function: Function = await self.cache.register(
                self._name(event), wasm, export=event.export, **options
            )
        except (WasmCacheError, TypeError, ValueError, OverflowError) as error:
            raise RefusedError(f"it can't be registered again: {error}") from None
        self._functions[key] = function
        return function

    def _name(self, event: Replayable) -> str:
        """Return a name for a function, for messages: its own, if no other one has it."""
        taken = event.function, normalise_type(event.arg_types)
        if taken in self._names or printable(event.function, MAX_NAME_LENGTH) != event.function:
            return f"{len(self._functions)}"
        self._names.add(taken)
        return event.function


def _refuse_cut(event: Replayable) -> None:
    needed = ("arguments", "host_calls", "start_calls", "setup")
    cut = [name for name in needed if getattr(event, name) is None]
    if not cut:
        return
    why = []
    if event.redacted:
        why.append("redact has withheld values")
    if event.row is not None and "arguments" in cut:
        why.append("a batch does not keep the arguments of a row in which a host function fails")
    if cut == ["start_calls"]:
        why.append(f"the answers to its start have over {MAX_START:,} characters")
    else:
        why.append(f"its values have over {MAX_CALL:,} characters together")
    are = "is" if len(cut) == 1 else "are"
    raise RefusedError(f"the log lacks {', '.join(cut)}, which {are} cut: {', or '.join(why)}")


def _decoded(kind: type[T], what: str, text: str | None) -> T:
    try:
        made = decode(text or "")
        if not isinstance(made, kind):
            raise UnreadableError(f"no {kind.__name__}")
    except UnreadableError as error:
        raise RefusedError(f"its {what} can't be made again: {error}") from None
    return made


def _answers(name: str, text: str | None) -> list[Answer]:
    try:
        return from_json(loads(text or ""))
    except UnreadableError as error:
        raise RefusedError(f"{name} can't be read: {error}") from None


def _options(event: Replayable) -> dict[str, Any]:
    """Return the parameters of `register`.

    Raises:
        RefusedError: some of them are not in the log, or make no sense.
    """
    setup = _decoded(dict, "options of register", event.setup)
    if setup.get("prepare"):
        raise RefusedError(
            "it was registered with prepare=, whose calls the log does not have: its instances "
            "began with what these had left"
        )
    try:
        returns = () if event.returns is None else FunctionKey.logged("", event.returns).args
        return {
            "args": FunctionKey.logged("", event.arg_types).args,
            "returns": returns[0] if len(returns) == 1 else returns or None,
            "abi": _abi(setup),
            "called_on_null": setup.get("called_on_null", False),
            "missing": setup.get("missing", "error"),
            "isolation": event.isolation,
            "imports": _imports(setup),
        }
    except RefusedError:
        raise
    except Exception as error:  # of parts that are of any type
        raise RefusedError(
            f"its options of register make no sense: {type(error).__name__}: {error}"
        ) from None


def _abi(setup: Mapping[Any, Any]) -> Abi | None:
    name = setup.get("abi", RECOGNISED)
    if name in (RECOGNISED, COMPONENT):  # which says its ABI itself
        return None
    if name == OWN:
        raise RefusedError("it was registered with an abi of the application's own")
    known = ABIS.get(name)
    if known is None:
        raise RefusedError(
            f"it has the abi {printable(str(name), 50)!r}, which is not one of this library's: "
            f"there is {', '.join(ABIS)}"
        )
    options = setup.get("options") or {}
    made: Abi = type(known)(**options) if options else known
    return made


def _imports(setup: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for interface, name in setup.get("functions") or ():
        made.setdefault(interface, {})[name] = _unused
    for module, name, params, results, reentrant in setup.get("imports") or ():
        host = HostFunction(_unused, params, results, reentrant=reentrant)
        made.setdefault(module, {})[name] = host
    makers: dict[str, Callable[..., Importable]] = {
        "memory": HostMemory,
        "table": HostTable,
        "global": HostGlobal,
    }
    for module, name, kind, *values in setup.get("externs") or ():
        made.setdefault(module, {})[name] = makers[kind](*values)
    return made


def _compare(ran: Ran, result: object, error: Exception | None, fuel: int | None) -> None:
    """Note how a call has ended, and what is different from the log."""
    event, now, differences = ran.event, ran.now, ran.differences
    now.update(dict.fromkeys(ENDS))
    if isinstance(error, HostError):
        now["error"] = error.name
    elif error is not None:
        now["error"] = type(error).__name__
        now["trap"], _ = reason_of(error)
        now["trap_offset"] = place_of(error)
    now["fuel"] = fuel
    if isinstance(error, DivergedError):
        differences.append(printable(str(error), MAX_TEXT))
        return
    if now["error"] != event.error:
        differences.append(f"it ended {_end(event.error, event.trap)}, and now {_end_now(now)}")
        if error is not None and not isinstance(error, HostError):
            ran.remarks.append(printable(str(error).split("\n", 1)[0], MAX_TEXT))
        return
    for name, what in (("trap", "trap"), ("trap_offset", "place of the trap"), ("fuel", "fuel")):
        before = getattr(event, name)
        unknown = name != "trap" and (before is None or (name != "fuel" and now[name] is None))
        if before != now[name] and not unknown:
            differences.append(f"{what}: {_shown(before)} in the log, {_shown(now[name])} now")
    if isinstance(error, WitError):
        result = error.value
    elif error is not None:
        return
    if event.result is None:
        return
    try:
        now["result"] = encode(result, MAX_CALL)
    except TooLargeError:
        now["result"] = None
    if now["result"] != _normal(event.result):
        differences.append(
            f"result: {_shown(event.result)} in the log, {_shown(now['result'])} now"
        )


def _normal(text: str) -> str:
    """Return a JSON text as this library writes it."""
    try:
        return dumps(loads(text))
    except (UnreadableError, ValueError):
        return text


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else printable(str(value), MAX_TEXT)


def _end(error: str | None, trap: str | None) -> str:
    if error is None:
        return "with a result"
    return f"by {printable(error, 100)}" + (f" ({printable(trap, 100)})" if trap else "")


def _end_now(now: Mapping[str, Any]) -> str:
    return _end(now["error"], now["trap"])


def _remark(ran: Ran) -> None:
    """Note what limits the comparison."""
    event, remarks = ran.event, ran.remarks
    if not event.pristine:
        remarks.append(
            "it was not the first call in its instance: what earlier calls left there may matter"
        )
    if event.redacted:
        remarks.append("redact had replaced some of its values")
    if event.compiler.endswith(PROFILED):
        remarks.append("it was profiled, by other code of the same module, whose stack is smaller")
    if event.row is not None:
        remarks.append("it was a row of a batch, of which the log has no fuel")
    if event.error is None and f'{{"{UNKNOWN}":' in (event.result or ""):
        remarks.append("its result has a value of another type, of which only the type is compared")
    if event.error is None and event.result is None:
        remarks.append("the log has no result to compare")
    if event.versions != library_versions():
        remarks.append(
            f"the log is of {printable(event.versions, 100)}, this is {library_versions()}"
        )


def tell(ran: Ran, out: TextIO) -> None:
    """Print what became of a call."""
    event = ran.event
    key = FunctionKey.logged(event.function, event.arg_types)
    where = "" if event.request is None else f"request {event.request}, "
    row = "" if event.row is None else f"row {event.row}, "
    print(f"{key} ({where}{row}event {ran.stamped.seq}): {ran.verdict}", file=out)
    if ran.refused is not None:
        print(f"  {ran.refused}", file=out)
        return
    for difference in ran.differences:
        print(f"  {difference}", file=out)
    if not ran.differences:
        fuel = ran.now["fuel"]
        burnt = "" if fuel is None else f", after {fuel:,} units of fuel"
        print(f"  it ends {_end_now(ran.now)}{burnt}", file=out)
    for remark in ran.remarks:
        print(f"  note: {remark}", file=out)
