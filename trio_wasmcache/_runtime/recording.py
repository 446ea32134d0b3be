"""Notes what calls are given and what their host answers, so that they can be run again.

1. Only with `log_values`. Then host functions are wrapped (`RecordedHost`), every call needs a
   `Call` (`RecordedCall`), and a batch is never a small one. Without, none of this is there.
2. Answers are noted in every call, as objects, as nobody knows yet that it will fail. They become
   text only for the calls that are logged.
3. An instance is pristine until a call begins in it, or its memory is written from outside. A reset
   makes it pristine again: it clears `GuestInstance.state`, where that is noted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Final, Protocol, final

from attrs import define, evolve, field, frozen

from .._abi import ABIS
from .._abi.base import Abi, Guest, Steps, Value
from .._abi.canonical import CanonicalAbi
from .._core.answers import (
    MAX_CALL,
    MAX_START,
    OP_SIZE,
    Answer,
    Answers,
    Grew,
    Invoked,
    Raised,
    Returned,
    Wrote,
    to_json,
)
from .._core.config import CacheConfig
from .._core.errors import (
    CodeMemoryError,
    ExitError,
    GuestError,
    LoadError,
    PluginError,
    TrapError,
    WitError,
)
from .._core.policy.records import Request
from .._core.policy.shares import CALL_FUEL
from .._core.tagged import LEAST_SIZE, Copier, TooLargeError, dumps, encode, unchanged
from .._core.wasm.reader import FuncType
from .._engine.base import (
    START,
    GuestInstance,
    GuestMemory,
    HostCall,
    LentMemory,
    OwnMemory,
)
from .._log import Origin
from .call import Call
from .host import AnyHost, HostExtern, HostFunction, HostGlobal, HostTable, TrampolineHost
from .start import Start
from .user_code import call_unprotected
from .wasi_config import Wasi

# Errors that are neither the guest's nor an application's: it would not get them again.
_NOBODYS: Final = (LoadError, CodeMemoryError, MemoryError, RecursionError)
KEY: Final = "answers"
"""Key of the answers of a call in `HostCaller.keep`."""
USED: Final = "trio_wasmcache used"
"""Key in `GuestInstance.state` that says that an instance is not pristine."""
# Of the numbers n * GOLDEN, the parts behind the point are spread evenly, whatever n are looked at:
# so functions that are called in turn are each sampled alike, and a test knows which calls are.
GOLDEN: Final = 0.6180339887498949
RECOGNISED: Final = "recognised"
"""Name of the ABI of a function that was registered without one."""
COMPONENT: Final = "component"
"""Name of the ABI of functions of components."""
OWN: Final = "own"
"""Name of an ABI of the application's."""


class CallLog(Protocol):
    """Logs calls with their values, within limits of its own."""

    def output_origin(self, request: Request) -> Origin:
        """Return the origin of events of a request, in the task that calls the guest."""

    def wants_values(self, request: Request) -> bool:
        """Return whether a call of a request may be logged now; if not, count it as dropped."""

    def replayable(self, request: Request, origin: Origin, size: int, **facts: Any) -> None:
        """Log a call; `size` is the number of characters of its values."""


@final
@frozen(eq=False)
class Setup:
    """The options of `register` that decide how a function runs, for `again`."""

    abi: str
    options: dict[str, object]
    """Attributes of the ABI that are not the defaults."""
    imports: tuple[tuple[tuple[str, str], HostFunction], ...]
    externs: tuple[tuple[tuple[str, str], HostExtern], ...]
    called_on_null: bool
    trap_missing: bool
    prepared: int
    """Number of calls of `prepare`."""
    wasi: Wasi | None
    export: str | None = None
    """Name of the function in its component; None: it is one of a core module."""
    functions: tuple[tuple[str, str], ...] = ()
    """Interfaces and names of the functions that are given for imports of a component."""

    @staticmethod
    def abi_of(abi: Abi | None) -> tuple[str, dict[str, object]]:
        """Return the name of an ABI, and its attributes that are not the defaults."""
        if abi is None:
            return RECOGNISED, {}
        for name, known in ABIS.items():
            if type(known) is type(abi):
                options = {}
                for attribute in getattr(type(abi), "__attrs_attrs__", ()):
                    value = getattr(abi, attribute.name)
                    if attribute.init and value != getattr(known, attribute.name):
                        options[attribute.name] = _plain(value)
                return name, options
        return (COMPONENT if isinstance(abi, CanonicalAbi) else OWN), {}

    def values(self) -> dict[str, object]:
        """Return all that is not the default as plain values."""
        wasi = self.wasi
        clock: object = None if wasi is None else wasi.clock
        values: dict[str, object] = {
            "abi": self.abi,
            "options": self.options,
            "called_on_null": self.called_on_null,
            "missing": "trap" if self.trap_missing else None,
            "prepare": self.prepared,
            "seed": None if wasi is None else wasi.random,
            "clock": "a function" if callable(clock) else clock,
            "imports": [
                (*name, one.params, one.results, one.reentrant) for name, one in self.imports
            ],
            "externs": [(*name, *_extern(one)) for name, one in self.externs],
            "functions": list(self.functions),
        }
        return {name: value for name, value in values.items() if value not in (None, False, [], {})}


def _plain(value: object) -> object:
    """Return mappings as dicts."""
    if hasattr(value, "keys") and not isinstance(value, dict):
        value = dict(value)  # type: ignore[call-overload]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _extern(extern: HostExtern) -> tuple[object, ...]:
    if isinstance(extern, HostGlobal):
        return "global", extern.type, extern.value
    return ("table",) if isinstance(extern, HostTable) else ("memory",)


@final
@define(eq=False)
class Recorder:
    """Notes the calls of one cache.

    Args:
        config: the limits, with `log_values` and `redact`.
        log: where the calls go.
        versions: of wasmtime and this library.
    """

    config: CacheConfig
    log: CallLog
    versions: str
    _calls: int = field(default=0, init=False)

    def sampled(self) -> bool:
        """Return whether the next call that does not fail is to be logged."""
        self._calls += 1
        return (self._calls * GOLDEN) % 1.0 < (self.config.log_values or 0.0)

    def wrap(self, hosts: Sequence[AnyHost], names: Sequence[str]) -> tuple[AnyHost, ...]:
        """Return the host functions of a module so that their answers are noted."""
        return tuple(
            host if isinstance(host, TrampolineHost) else RecordedHost(host, index, name)
            for index, (host, name) in enumerate(zip(hosts, names, strict=True))
        )

    def watched(self, native: GuestInstance) -> GuestMemory | None:
        """Return the memory of an instance, in which nothing runs, so that writes are noted."""
        memory = native.memory
        return None if memory is None else _OutsideMemory(memory, native)


@final
@define(eq=False)
class _OutsideMemory:
    """The memory of an instance, written by the application between calls."""

    _memory: OwnMemory
    _native: GuestInstance

    @property
    def size(self) -> int:
        return self._memory.size

    def read(self, at: int, n: int) -> bytes:
        return self._memory.read(at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        self._native.state[USED] = True
        self._memory.write(at, data)

    def grow(self, pages: int) -> int:
        self._native.state[USED] = True
        return self._memory.grow(pages)


@final
@define(eq=False)
class _RecordedMemory:
    """The memory of a guest while it waits for a host function, of which writes are noted."""

    _memory: LentMemory
    _answer: Answer
    _answers: Answers

    @property
    def size(self) -> int:
        return self._memory.size

    def read(self, at: int, n: int) -> bytes:
        return self._memory.read(at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        self._memory.write(at, data)
        with memoryview(data) as view:
            self._answers.count(OP_SIZE + view.nbytes * 4 // 3)
            if not self._answers.cut:
                self._answer.operations.append(Wrote(at.__index__(), view.tobytes()))

    def grow(self, pages: int) -> int:
        self._answers.count(OP_SIZE)
        self._answer.operations.append(Grew(pages))
        return self._memory.grow(pages)

    def end(self) -> None:
        self._memory.end()


@final
@define(eq=False)
class RecordedHost:
    """A host function whose answers are noted."""

    host: AnyHost
    index: int
    """Position among the host functions of the module."""
    name: str
    """Name for messages, and for `redact`."""
    serve_alone: None = None

    @property
    def type(self) -> FuncType:
        """Type of the function."""
        return self.host.type

    def misfit(self, wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return self.host.misfit(wanted)

    def serve(self, call: HostCall) -> Any:
        """Answer a call, and note the answer."""
        answers = _answers_of(call)
        if answers is None:
            return self.host.serve(call)
        answer = answers.begin(self.index)
        _note_what_it_does(call, answer, answers)
        try:
            served: Any = self.host.serve(call)
        except Exception as error:
            _note_error(answer, answers, error)
            raise
        return self._served(served, answer, answers)

    def _served(self, served: Any, answer: Answer, answers: Answers) -> Any:
        """Return what was served; its results are noted once they are there."""
        if inspect.iscoroutine(served):
            return self._await(served, answer, answers)
        if isinstance(served, Generator):
            return self._step(served, answer, answers)
        return _returned(served, answer, answers)

    async def _await(
        self, served: Coroutine[object, object, Value], answer: Answer, answers: Answers
    ) -> Value:
        try:
            results = await served
        except Exception as error:
            _note_error(answer, answers, error)
            raise
        return self._served(results, answer, answers)

    def _step(
        self, served: Generator[Any, Any, Value], answer: Answer, answers: Answers
    ) -> Generator[Any, Any, Value]:
        try:
            results = yield from served
        except Exception as error:
            _note_error(answer, answers, error)
            raise
        return self._served(results, answer, answers)


def _answers_of(call: HostCall) -> Answers | None:
    """Return where to note the answers of the call, row or start that a host call is a part of."""
    caller = call.caller
    if caller is None or caller.quiet or caller.watch is not None:
        return None
    keep = caller.keep
    answers: Answers | None = keep.get(KEY)
    if answers is None:
        answers = keep[KEY] = Answers(MAX_START if isinstance(caller, Start) else MAX_CALL)
        if isinstance(caller, Start):
            call.state[START] = answers
    return answers


def _note_what_it_does(call: HostCall, answer: Answer, answers: Answers) -> None:
    take, invoke = call.take_fuel, call.invoke

    def take_fuel(fuel: int) -> int:
        taken = take(fuel)
        answer.take_fuel(taken)
        return taken

    def lend(memory: LentMemory) -> LentMemory:
        return _RecordedMemory(memory, answer, answers)

    call.take_fuel = take_fuel
    call.lend = lend
    if call.memory is not None:
        call.memory = lend(call.memory)
    if invoke is not None:

        def noted(export: str, values: Sequence[object]) -> None:
            assert invoke is not None
            invoke(export, values)
            answer.give_back(CALL_FUEL)  # which the runner has taken for it
            answers.count(OP_SIZE + len(export) + 20 * len(values))
            answer.operations.append(Invoked(export, tuple(map(_number, values))))

        call.invoke = noted


def _number(value: Any) -> int | float:
    return float.__pos__(value) if isinstance(value, float) else int(value)


def _returned(results: Any, answer: Answer, answers: Answers) -> Any:
    answers.count(20 * len(results))
    answer.outcome = Returned(tuple(map(_number, results)))
    return results


def _note_error(answer: Answer, answers: Answers, error: Exception) -> None:
    answers.count(OP_SIZE)
    answer.outcome = Raised(type(error).__name__, detail_of(error))


def detail_of(error: BaseException) -> str | int | None:
    """Return the code of a trap, or the status of an exit; None for other errors."""
    if isinstance(error, TrapError):
        return error.code
    return error.status if isinstance(error, ExitError) else None


@final
class RecordedCall(Call):
    """A call whose values are noted, and logged if it fails, or is one of those that are sampled.

    The arguments are as for `Call`, whose `runtime` has a `Recorder`.
    """

    def __init__(self, runtime: Any, bound: Any, *args: Any) -> None:
        super().__init__(runtime, bound, *args)
        self._recorder: Recorder = runtime.recorder
        self._first: int | None = None
        """Row that would be the first in its instance; of a call, 0. None: there were others."""
        if USED not in self.native.state:
            self._first = 0
        self.native.state[USED] = True

    async def run_steps(
        self,
        make: Callable[[Guest, tuple[object, ...]], Steps],
        values: tuple[object, ...],
        *,
        begun: bool = False,
    ) -> Value:
        try:
            result = await super().run_steps(make, values, begun=begun)
        except WitError as error:
            # It is a result, too; unless a host function has raised it, which was a failure.
            if self.failed is None and self._recorder.sampled():
                self._note(values, error, result=error.value)
            raise
        if self._recorder.sampled():
            self._note(values, None, result=result)
        return result

    async def renew(self, error: BaseException, keep: Any = None) -> bool:
        """Put the instance back, or replace it: see `Call.renew`.

        **Checkpoint:** as there.
        **Cancellation:** as there.
        """
        row = getattr(error, "row", None)
        same = await super().renew(error, keep)
        self._first = None if row is None else row + 1
        self.native.state[USED] = True
        return same

    def fail(self, error: BaseException, values: tuple[object, ...]) -> None:
        """Note that the call failed: see `Call.fail`."""
        reason = reason_of(error)
        super().fail(error, values)
        if isinstance(error, Exception) and not isinstance(error, _NOBODYS) and not self.ended:
            self._note(values, error, reason)

    def refuse(self, error: GuestError, values: tuple[object, ...]) -> None:
        """Complete an error: see `Call.refuse`."""
        reason = reason_of(error)
        super().refuse(error, values)
        if error.row is None or isinstance(error, PluginError) or self.tally.alone:
            # Otherwise it is the results of all rows that are too large together.
            self._note(values, error, reason)

    def explain(self, error: GuestError, values: tuple[object, ...]) -> None:
        """Complete the error of a row: see `Call.explain`."""
        reason = reason_of(error)
        super().explain(error, values)
        self._note(values, error, reason)

    def _note(
        self,
        values: tuple[object, ...],
        error: BaseException | None,
        reason: tuple[str | None, int | None] = (None, None),
        result: object = None,
    ) -> None:
        request = self._request
        if request is None or not self._recorder.log.wants_values(request):
            return
        row = getattr(error, "row", None)
        definition = self.bound.definition
        setup = definition.setup
        assert isinstance(setup, Setup)
        with self.runner.meter(self.share):
            texts = Texts(self._recorder.config.redact, self.name)
            self._write(texts, values, row, error, result)
            trap, offset = reason
            artifact = definition.module.artifact
            config = self._recorder.config
            public: Any = definition.public
            returns = definition.returns
            types = (returns,) if isinstance(returns, str) else returns
            self._recorder.log.replayable(
                request,
                self._origin_for(request),
                texts.size,
                instance=None if request.instance is None else request.instance.number,
                row=row,
                pristine=self._first == (row or 0),
                error=None if error is None else type(error).__name__,
                trap=trap,
                trap_offset=offset,
                fuel=self.fuel if row is None else None,
                **texts.texts,
                cut=", ".join(texts.cut) or None,
                redacted=texts.redacted,
                returns=None if types is None else ", ".join(types),
                export=setup.export or definition.export,
                module_digest=definition.module.digest,
                isolation=public.isolation,
                compiler=artifact.tier.value,
                versions=self._recorder.versions,
                total_fuel=self.bound.total_fuel,
                stack_size_bytes=config.instance_stack_size,
                memory_limit_bytes=artifact.edits.memory_limit,
                table_limit_elements=artifact.edits.table_limit,
                max_result_size_bytes=self.tally.limit,
            )

    def _write(
        self,
        texts: Texts,
        values: tuple[object, ...],
        row: int | None,
        error: BaseException | None,
        result: object,
    ) -> None:
        """Make the texts of all values."""
        definition = self.bound.definition
        setup = definition.setup
        assert isinstance(setup, Setup)
        texts.add("setup", texts.redact("setup", setup.values()))
        if len(values) == self.bound.binding.arity:
            self._write_arguments(texts, values)
        else:  # of a row in which a host function failed, a batch does not collect them
            texts.cut_out("arguments")
        hosts = definition.module.hosts
        texts.add_answers("start_calls", hosts, self.native.host_state.get(START))
        texts.add_answers("host_calls", hosts, self.kept(KEY, self.row if row is None else row))
        if error is None or (isinstance(error, WitError) and self.failed is None):
            texts.add("result", texts.redact("result", result))

    def _write_arguments(self, texts: Texts, values: tuple[object, ...]) -> None:
        loggable = getattr(self.bound.binding, "loggable", None)
        try:
            if loggable is not None:
                values = loggable(values, MAX_CALL // LEAST_SIZE)
        except TooLargeError:
            texts.cut_out("arguments")
            return
        given = [texts.redact(f"argument {number}", value) for number, value in enumerate(values)]
        texts.add("arguments", tuple(given))


class _WithheldError(Exception):
    """Raised for a value that `redact` could not make fit for the log."""


OWN_HOST: Final = "trio_wasmcache"
"""Name of host functions of this library's own."""
WITHHELD: Final = _WithheldError()


@final
class Texts:
    """The values of one call as texts, as far as they fit.

    Args:
        redact: function of the application that sees them first; None: there is none.
        function: name of the function that was called.
    """

    def __init__(self, redact: Callable[[str, str, object], object] | None, function: str) -> None:
        self.texts: dict[str, str | None] = {}
        """{name: text, or None}."""
        self.cut: list[str] = []
        """Names of those that do not fit, or were withheld."""
        self.redacted = False
        """Whether a value was replaced."""
        self.size = 0
        """Characters of all texts."""
        self._redact = redact
        self._function = function

    def redact(self, what: str, value: object) -> object:
        """Return what the application wants to be logged of a value."""
        if self._redact is None:
            return value
        try:
            before = Copier(MAX_CALL).copy(value)
        except TooLargeError:  # it would not fit as it is, so it is left out
            return WITHHELD
        # A function that masks in place changes neither what the caller has nor what it gets.
        given = Copier(MAX_CALL).copy(before)
        try:
            shown = call_unprotected(self._redact, (self._function, what, given))
        except Exception:
            shown = WITHHELD
        if inspect.iscoroutine(shown):
            shown.close()
            shown = WITHHELD
        if shown is given and unchanged(given, before):
            return value  # of its own class, of which the copy may not be
        self.redacted = True
        return shown

    def add(self, name: str, value: object) -> None:
        """Make the text of a value."""
        items = value if isinstance(value, tuple) else (value,)
        if any(item is WITHHELD for item in items):
            self.cut_out(name)
            return
        try:
            self._keep(name, encode(value, MAX_CALL - self.size))
        except TooLargeError:
            self.cut_out(name)

    def add_answers(self, name: str, hosts: Sequence[AnyHost], answers: object) -> None:
        """Make the text of the answers of the host; None: there were none."""
        if not isinstance(answers, Answers):
            self._keep(name, "[]")
            return
        if answers.cut:
            self.cut_out(name)
            return
        kept: list[Answer] = answers.answers
        if self._redact is not None:
            try:
                kept = self._redact_answers(hosts, kept)
            except _WithheldError:
                self.cut_out(name)
                return
        text = dumps(to_json(kept))
        if self.size + len(text) > MAX_CALL:
            self.cut_out(name)
        else:
            self._keep(name, text)

    def _redact_answers(self, hosts: Sequence[AnyHost], answers: list[Answer]) -> list[Answer]:
        made, last = [], ""
        for one in answers:
            name = _name_of(hosts[one.host])
            # What a plugin of Extism gets of a function, this library writes, in another answer.
            name = last = name if name != OWN_HOST else last or name
            made.append(self._redact_answer(name, one))
        return made

    def _redact_answer(self, name: str, answer: Answer) -> Answer:
        made = Answer(answer.host, [], answer.outcome)
        for operation in answer.operations:
            if isinstance(operation, Wrote):
                data = self.redact(f"{name} wrote", operation.data)
                if not isinstance(data, bytes):
                    raise _WithheldError
                operation = evolve(operation, data=data)
            made.operations.append(operation)
        if isinstance(answer.outcome, Returned):
            values = self.redact(f"{name} returned", answer.outcome.values)
            if not isinstance(values, tuple) or not all(type(it) in (int, float) for it in values):
                raise _WithheldError
            made.outcome = Returned(values)
        return made

    def _keep(self, name: str, text: str) -> None:
        self.texts[name] = text
        self.size += len(text)

    def cut_out(self, name: str) -> None:
        """Note that a value is not there."""
        self.texts[name] = None
        self.cut.append(name)


def _name_of(host: AnyHost) -> str:
    return host.name if isinstance(host, RecordedHost) else ""


def reason_of(error: BaseException) -> tuple[str | None, int | None]:
    """Return the code of the trap, or the status of the exit, and where the guest was.

    The error does not have its facts yet.
    """
    detail = detail_of(error)
    trap = f"status {detail}" if isinstance(detail, int) else detail
    # Once it has a function, it is the error of another guest, which a host function has called.
    own = isinstance(error, GuestError) and not error.function
    return trap or None, place_of(error) if own else None


def place_of(error: BaseException) -> int | None:
    """Return the position of the innermost instruction that was running; None: not known."""
    frames = error.frames if isinstance(error, GuestError) else ()
    return frames[0].offset if frames else None
