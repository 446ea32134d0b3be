"""Finds the toolchains of the cookbook's chapters on this machine, and makes them ready to run.

`TOOLCHAINS` in the environment names folders with more of them, separated by colons: virtual
environments with PyPI's (`bin` is searched), and folders with npm's (`node_modules`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

NAMES = ("wasm32-wasip1", "wasm32-wasi")
"""The target of Rust for WASI preview 1: now, and before Rust 1.78."""


class MissingError(Exception):
    """A toolchain is not there; the message says which part of it."""


def elsewhere() -> list[Path]:
    """The folders that `TOOLCHAINS` names."""
    return [Path(name) for name in os.environ.get("TOOLCHAINS", "").split(":") if name]


def path() -> str:
    """Where programs are searched: in `TOOLCHAINS`, and beside this interpreter, first."""
    bins = [*(folder / "bin" for folder in elsewhere()), Path(sys.executable).parent]
    return os.pathsep.join([*map(str, bins), os.environ["PATH"]])


def programs(*names: str) -> Callable[[Path], None]:
    """Return a probe for programs that must be there."""

    def probe(_folder: Path) -> None:
        for name in names:
            if shutil.which(name, path=path()) is None:
                raise MissingError(f"no {name}")

    return probe


def answers(*command: str, words: str = "") -> Callable[[Path], None]:
    """Return a probe for a command that must succeed, and say these words."""

    def probe(_folder: Path) -> None:
        program = shutil.which(command[0], path=path())
        if program is None:
            raise MissingError(f"no {command[0]}")
        done = ask([program, *command[1:]])
        if done.returncode or words not in done.stdout:
            raise MissingError(f"no {' '.join(command)} that works and says {words!r}")

    return probe


def ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "PATH": path(), "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def rust(folder: Path) -> None:
    """Find a compiler with the target; under its old name, a script in `bin` translates it."""
    for one in (os.environ.get("RUSTC"), shutil.which("rustc"), "/usr/bin/rustc"):
        if one is None or not shutil.which(one):
            continue
        for name in NAMES:
            found = ask([one, "--print", "target-libdir", "--target", name])
            if found.returncode or not Path(found.stdout.strip()).is_dir():
                continue
            script = folder / "bin" / "rustc"
            script.parent.mkdir()
            linker = "" if name == NAMES[0] else "-C linker=wasm-ld"
            script.write_text(f"""#!/bin/sh
for argument do
    shift
    [ "$argument" = {NAMES[0]} ] && argument={name}
    set -- "$@" "$argument"
done
exec {one} {linker} "$@"
""")
            script.chmod(0o755)
            return
    raise MissingError(f"no rustc with {NAMES[0]}")


def node_modules(*package: str) -> Callable[[Path], None]:
    """Return a probe for npm's packages, which are linked into the folder that it is given."""

    def probe(folder: Path) -> None:
        programs("npx")(folder)
        for one in elsewhere():
            if all((one / "node_modules" / name).exists() for name in package):
                (folder / "node_modules").symlink_to(one / "node_modules")
                return
        raise MissingError(f"no node_modules with {', '.join(package)}")

    return probe


WASI_C = answers("clang", "--target=wasm32-wasi", "-print-file-name=libc.a", words="/libc.a")

# {chapter: probe}: raises MissingError if its build can't run, else the build has to succeed.
PROBES: dict[str, Callable[[Path], None]] = {
    "assemblyscript": node_modules("assemblyscript"),
    "c": WASI_C,
    "emscripten": programs("emcc"),
    "extism": node_modules("assemblyscript", "@extism/as-pdk"),
    "go": answers("go", "version", words="go1.24"),
    "javascript": node_modules("@bytecodealliance/componentize-js"),
    "opa": programs("opa", "tar"),
    "python": programs("componentize-py"),
    "rust": rust,
    "scylladb": WASI_C,
    "zig": answers("python", "-m", "ziglang", "version", words="0.17"),
}


def prepare(chapter: str, folder: Path) -> dict[str, str]:
    """Make a chapter's toolchain ready to run in a folder; return its environment.

    Raises:
        MissingError: it is not there.
    """
    PROBES[chapter](folder)
    found = os.pathsep.join([str(folder / "bin"), path()])
    return {**os.environ, "PATH": found, "GOTOOLCHAIN": "local"}
