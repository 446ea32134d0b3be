"""Compile in a process of its own, with limits on its memory and its time.

A few KB of code can make wasmtime's compiler take hours, or more memory than there is, and then it
ends the process it runs in. There is no other way to stop it than to end that process, so here it
is one that may be ended. It is started for each module, with the parts that go with it, which costs
some tenths of a second.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import final

from ..._core.errors import CacheDirError, InvalidModuleError
from ..._core.tiers import Tier
from . import native
from .code_cache import CodeCache
from .compiler import CompileLimitError, build
from .config import new_config

# What the answer begins with, and how long the size after it is.
BUILT, REFUSED, SIZE_BYTES = b"B", b"R", 8
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trio_wasmcache._engine.wasmtime.subprocess import main; "
    "main(*sys.argv[2:])"
)
# Signals that end it when its CPU time is used up, as status.
TIME_IS_UP = (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL)
# Seconds for the process to start and to read, and for a machine that is busy.
PATIENCE = 30.0


@final
class SubprocessCompiler:
    """Compiles modules in processes of their own, whose memory and CPU time are limited."""

    __slots__ = ("folder", "memory", "seconds", "stack_size")

    def __init__(
        self,
        stack_size: int,
        memory: int,
        seconds: float,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.stack_size = stack_size
        self.memory = memory
        """Bytes of address space beyond what the process has when it begins."""
        self.seconds = seconds
        """Seconds of CPU time that a compile may take."""
        self.folder = folder
        """Where compiled code is kept; see `CodeCache`."""

    def build(self, tier: Tier, wasms: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Return compiled code at rest, and its bytes once it is loaded. Blocks: for threads.

        Several modules are compiled in one process, with the limits of one.

        Args:
            tier: in which they are compiled.
            wasms: the modules, binary.

        Raises:
            InvalidModuleError: wasmtime can't compile one.
            CompileLimitError: it took too much.
        """
        if not wasms:
            return []
        limits = self.stack_size, self.memory, self.seconds
        # -I: neither the working directory nor the user's own site takes part.
        command = [sys.executable, "-I", "-c", START, json.dumps(sys.path)]
        command += [os.fsdecode(self.folder or ""), tier.value, *map(str, limits)]
        try:
            done = subprocess.run(
                command,
                input=b"".join(_sized(wasm) for wasm in wasms),
                capture_output=True,
                timeout=4 * self.seconds + PATIENCE,
                env={**os.environ, "RUST_BACKTRACE": "0"},
                start_new_session=True,  # a Ctrl-C is for the application to deal with
            )
        except subprocess.TimeoutExpired:
            raise self._too_long() from None
        kind, rest = done.stdout[:1], done.stdout[1:]
        if done.returncode == 0 and kind == BUILT:
            return [
                (made[SIZE_BYTES:], int.from_bytes(made[:SIZE_BYTES], "little"))
                for made in _apart(rest)
            ]
        if done.returncode == 0 and kind == REFUSED:
            raise InvalidModuleError(rest.decode())
        if done.returncode in TIME_IS_UP:
            raise self._too_long()
        raise CompileLimitError(
            f"compiling it ended with status {done.returncode}, most likely for want of memory; "
            f"compile_memory is {self.memory}: raise it, or split the module"
        )

    def _too_long(self) -> CompileLimitError:
        return CompileLimitError(
            f"compiling it took more than compile_seconds, {self.seconds:g}: raise it, or split "
            "the module"
        )


def main(folder: str, tier_name: str, stack_size: str, memory: str, seconds: str) -> None:
    """Be the process: take a module on standard input, and answer on standard output."""
    tier, code_cache = Tier(tier_name), None
    engine = native.wasm_engine_new_with_config(new_config(int(stack_size), tier))
    if folder:
        with contextlib.suppress(CacheDirError):  # having none only costs time
            code_cache = CodeCache(folder, int(stack_size), tiers=(tier,))
    wasms = _apart(sys.stdin.buffer.read())
    _limit(int(memory), float(seconds))
    try:
        made = build({tier: engine}, tier, wasms, code_cache)
        answer = BUILT + b"".join(
            _sized(size.to_bytes(SIZE_BYTES, "little") + code) for code, size in made
        )
    except InvalidModuleError as error:
        answer = REFUSED + str(error).encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    # Freeing what is left takes as long as compiling a small module.
    os._exit(0)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(SIZE_BYTES, "little") + data


def _apart(joined: bytes) -> list[bytes]:
    """Return what `_sized` was joined of."""
    pieces, at = [], 0
    while at < len(joined):
        begin = at + SIZE_BYTES
        at = begin + int.from_bytes(joined[at:begin], "little")
        pieces.append(joined[begin:at])
    return pieces


def _limit(memory: int, seconds: float) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    used = resource.getrusage(resource.RUSAGE_SELF)
    # The limit is in whole seconds, so it is the last word only.
    end = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 1))
    signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time of all threads; ends the process
