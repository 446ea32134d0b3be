"""Try whether and how instances of a module can be put back: see `restore`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import c_int, c_size_t, c_void_p
from typing import Any, final

from attrs import define, evolve, field

from ..._core.config import WASM_PAGE, KiB, MiB
from ..._core.errors import GuestError, LoadError
from ..._core.policy.shares import CALL_FUEL
from ..._core.tiers import Tier
from ..._core.wasm.reader import ModuleInfo
from ..._core.wasm.restorer import restorer
from ..base import UNDER_WAY, Artifact, HostCall, HostImport, NoMemoryError, StartCall
from .compiler import build, restorer_time
from .function import WasmtimeFunction
from .instance import WasmtimeInstance
from .module import WasmtimeModule
from .plan import Patch, RestorePlan, make_plan, patches_size
from .reservations import IMAGE_MAPPINGS
from .restore import LINUX, Restoring, can_discard
from .store import Tally

# Fuel that a start may burn when it is tried: about 0.1 s, in a thread.
TRIAL_FUEL = 100_000_000
TRIAL_SLICE = 1_000_000
# The memories of an instance that is tried are filled twice: about 1 ms a MiB.
TRIAL_SIZE = 64 * MiB
# Copying back more than this takes longer than making a new instance.
PATCH_SIZE = 256 * KiB
# What is looked at, and patched, at a time. Smaller than any system's page would do as well.
PIECE = 4 * KiB

_memcmp: Callable[[int, int, int], int] | None = None
if LINUX:
    _memcmp = ctypes.CDLL(None)["memcmp"]
    _memcmp.restype, _memcmp.argtypes = c_int, [c_void_p, c_void_p, c_size_t]


class UnrestorableError(Exception):
    """Instances of a module can't be put back; the message says why."""


def prove(
    engines: Mapping[Tier, int],
    artifact: Artifact,
    hosts: tuple[HostImport, ...],
    initialize: tuple[StartCall, ...],
) -> Artifact:
    """Find out how instances are put back; see `Engine.prove`. Blocks: for threads."""
    infos = [info for info, _ in artifact.modules]
    whole = make_plan(artifact)
    plans = [part.plan for part in whole.parts] or [whole]
    made = restorer(*infos, notes=[len(one.notes) for one in plans])
    code, code_size, load_time = b"", 0, 0
    if made is not None:
        ((code, code_size),) = build(engines, artifact.tier, [made.wasm])
        load_time = restorer_time(code, made)
    plan = RestorePlan(code, made)
    tried = evolve(
        artifact,
        code_size=artifact.code_size + code_size,
        restore=plan,
        module_mappings=artifact.module_mappings + (IMAGE_MAPPINGS if code else 0),
        load_time=artifact.load_time + load_time,
    )
    module = WasmtimeModule(engines[artifact.tier], tried, hosts, Tally())
    try:
        patches = find_patches(module, plan, infos, initialize)
    except UnrestorableError as error:
        return evolve(artifact, obstacle=str(error))
    finally:
        module.close()
    return evolve(tried, restore=evolve(plan, patches=patches))


def find_patches(
    module: WasmtimeModule,
    plan: RestorePlan,
    infos: Sequence[ModuleInfo],
    initialize: tuple[StartCall, ...],
) -> tuple[tuple[Patch, ...], ...]:
    """Try it: make two instances, overwrite one and reset it, and return what differs.

    Raises:
        UnrestorableError: it can't be put back, or would not be what a new instance is.
    """
    if not can_discard():
        raise UnrestorableError("memory can't be put back on this system")
    pages = sum(memory.minimum for info in infos for memory in info.own_memories)
    if pages * WASM_PAGE > TRIAL_SIZE:
        raise UnrestorableError(f"its memories have more than {TRIAL_SIZE} bytes")
    first = second = None
    try:
        first, second = _started(module, initialize), _started(module, initialize)
        tried = Restoring(first, module, plan)
        model = Restoring(second, module, plan)
        if tried.grown() or model.grown():
            raise UnrestorableError("its start makes it grow")
        if any(_differences(tried, model)):
            raise UnrestorableError("its start does not do the same each time")
        _overwrite(tried)
        patches = _differences(tried, model)
        tried.use(patches)
        size = patches_size(patches)
        if size > PATCH_SIZE:
            raise UnrestorableError(
                f"{size} bytes would have to be copied each time, which takes longer than to make "
                "a new instance"
            )
        _overwrite(tried)
        if any(_differences(tried, model)):
            raise UnrestorableError("its memory does not stay put back")
        return patches
    except GuestError as error:
        raise UnrestorableError(f"its start failed when it was tried: {error}") from None
    except NoMemoryError:
        raise  # that says nothing about the module
    except LoadError as error:
        raise UnrestorableError(str(error)) from None
    finally:
        for instance in (first, second):
            if instance is not None:
                instance.close()


@final
@define(eq=False)
class Trial:
    """The start of an instance that is tried, for host functions: a `HostCaller`."""

    instance: WasmtimeInstance
    keep: dict[str, Any] = field(factory=dict)
    before: int = 0
    """Units of fuel that its start function burnt, when `_initialize` runs."""
    quiet: bool = True
    watch: None = None

    def refuse_host_call(self) -> None:
        return None

    def note_host_error(self, index: int, error: Exception) -> None:
        """Do nothing, as the trial ends with it."""

    def burnt(self) -> int:
        return self.before + TRIAL_FUEL - self.instance.fuel_left()

    def log_line(self, stream: str, line: str) -> bool:  # noqa: ARG002  # it is dropped
        return False

    def log_dropped(self, lines: int, size: int) -> None:
        pass


def _started(module: WasmtimeModule, initialize: tuple[StartCall, ...]) -> WasmtimeInstance:
    instance = module.instantiate(TRIAL_FUEL, TRIAL_SLICE)
    trial = Trial(instance)
    try:
        poll_to_the_end(instance, trial)
        instance.started()
        calls: list[tuple[WasmtimeFunction | None, tuple[int, ...]]] = [
            (instance.start_function(), ())
        ]
        calls += [(instance.function(export), values) for export, values in initialize]
        for function, values in calls:
            if function is None:
                continue
            trial.before = trial.burnt()
            if function.begin(values, TRIAL_FUEL) is UNDER_WAY:
                poll_to_the_end(instance, trial)
                function.finish()
    except BaseException:
        instance.close()
        raise
    return instance


def poll_to_the_end(instance: WasmtimeInstance, trial: Trial | None = None) -> None:
    """Drive what is under way as the runner would, with nobody else to wait for."""
    trial = trial or Trial(instance)
    over = False
    while not over:
        if instance.host_call is not None:
            host = instance.module.hosts.imports[instance.host_call.index]
            _answer(host, instance.host_call, trial)
        over = instance.poll()


def _answer(host: HostImport, call: HostCall, trial: Trial) -> None:
    """Answer a host call at once, as nobody waits in a trial."""
    if host.serve is None:
        raise UnrestorableError(f"its start calls {host.module}.{host.name}")
    call.caller = trial
    call.spend(CALL_FUEL)
    served = host.serve(call)
    while not isinstance(served, tuple):
        try:
            pause = next(served)
        except StopIteration as end:
            served = end.value
        else:
            if pause > 0:
                raise UnrestorableError(f"its start waits in {host.module}.{host.name}")
    call.answer(served)


def _overwrite(restoring: Restoring) -> None:
    """Fill all memories, and reset the instance."""
    for base, size in restoring.memories:
        ctypes.memset(base, 0xA5, size)
    if not restoring.reset():
        raise UnrestorableError("the engine could not put it back")


def _differences(ours: Restoring, theirs: Restoring) -> tuple[tuple[Patch, ...], ...]:
    """Return what to copy to the memories of one so that they are as the other's."""
    return tuple(
        tuple(_patches(base, model, size))
        for (base, size), (model, _) in zip(ours.memories, theirs.memories, strict=True)
    )


def _patches(base: int, model: int, size: int) -> Iterator[Patch]:
    for start in range(0, 0 if _same(base, model, size) else size, WASM_PAGE):
        if _same(base + start, model + start, WASM_PAGE):
            continue
        for at in range(start, start + WASM_PAGE, PIECE):
            if not _same(base + at, model + at, PIECE):
                yield at, ctypes.string_at(model + at, PIECE)


def _same(one: int, other: int, size: int) -> bool:
    # Without a copy, and without the GIL, which the event loop wants.
    return _memcmp is not None and not _memcmp(one, other, size)
