"""`cache_dir`: compiled code that survives restarts, in a folder that nobody else can use.

With real files, and code that gives another number when it is not what was asked for. Whether a
compile was a hit is seen by its file: it is not written again.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import stat
from collections.abc import Iterator
from ctypes import byref
from pathlib import Path

import pytest
import trio
from engine.support import Quiet, exported, quiet_cache, run_python

from trio_wasmcache import CacheConfig, CacheDirError, InvalidModuleError, WasmCacheError
from trio_wasmcache._cache.open import open_cache
from trio_wasmcache._core.config import KiB
from trio_wasmcache._core.tiers import OPTIMIZING
from trio_wasmcache._engine.wasmtime import native
from trio_wasmcache._engine.wasmtime.code_cache import CodeCache
from trio_wasmcache._engine.wasmtime.config import new_config
from trio_wasmcache._engine.wasmtime.new_module import new_module
from trio_wasmcache._engine.wasmtime.private_files import (
    StrangeFileError,
    read_ours,
    write_whole,
)

STACK = 512 * KiB


def giving(number: int) -> bytes:
    """A module whose function gives that number."""
    return exported(f"(i64.const {number})", "(result i64)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "code"


@pytest.fixture
def plain() -> Iterator[int]:
    """An engine without a cache."""
    engine = native.wasm_engine_new_with_config(new_config(STACK, OPTIMIZING))
    yield engine
    native.wasm_engine_delete(engine)


async def call(folder: Path, wasm: bytes) -> object:
    """What the module's function gives, in a cache that is opened for it."""
    async with quiet_cache(cache_dir=folder) as cache:
        function = await cache.register("f", wasm, args=(), returns="i64", export="f")
        return await function.call()


def code_files(folder: Path) -> list[Path]:
    """Where wasmtime keeps code."""
    found = folder.glob("wasmtime/modules/*/*")
    return sorted(file for file in found if not file.suffix)


def looks(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    """What would change if a file was written again."""
    found = {}
    for file in code_files(folder):
        status = file.stat()
        found[file] = (status.st_ino, status.st_mtime_ns, file.read_bytes())
    return found


@pytest.mark.usefixtures("optimizing_only")
async def test_what_was_compiled_once_is_there_after_a_restart(folder: Path) -> None:
    """Another cache, and another process, find the code: no file is written again."""
    assert await call(folder, giving(1)) == 1
    first = looks(folder)
    assert len(first) == 1
    assert await call(folder, giving(1)) == 1
    script = """
        import sys, trio
        from pathlib import Path
        from engine.test_code_cache import call, giving

        print(trio.run(call, Path(sys.argv[1]), giving(1)))
    """
    assert run_python(script, str(folder)) == "1\n"
    assert looks(folder) == first
    assert await call(folder, giving(2)) == 2
    assert len(looks(folder)) == 2


async def test_a_folder_is_made_for_its_owner_alone(folder: Path) -> None:
    """Whatever the umask says, and its parents if need be; a path in words is fine, too."""
    before = os.umask(0)
    try:
        assert await call(folder / "deep" / "er", giving(1)) == 1
    finally:
        os.umask(before)
    for path in (folder / "deep" / "er", *(folder / "deep" / "er").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    async with open_cache(CacheConfig(cache_dir=str(folder / "text")), logger=Quiet()):
        assert {path.name for path in (folder / "text").iterdir()} == {
            "wasmtime",
            "digests",
            "locks",
            "states",
        }


@pytest.mark.parametrize("name", ['a "quoted" \\ name', "über", "tab\tand del\x7f", "[x] #y"])
async def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    """The settings for wasmtime spell it as TOML wants it."""
    assert await call(tmp_path / name, giving(1)) == 1
    assert len(code_files(tmp_path / name)) == 1


async def test_a_damaged_file_means_compiling_anew(folder: Path) -> None:
    """Wherever the damage is: wasmtime itself would run much of it without a word."""
    assert await call(folder, giving(1)) == 1
    (file,) = code_files(folder)
    good = file.read_bytes()
    for at in range(0, len(good), len(good) // 12):
        bad = bytearray(good)
        bad[at] ^= 0x10
        file.write_bytes(bad)
        assert await call(folder, giving(1)) == 1
        assert file.read_bytes() == good


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
async def test_a_truncated_file_means_compiling_anew(folder: Path, part: float) -> None:
    """Empty, half, or all but its last bytes."""
    assert await call(folder, giving(1)) == 1
    (file,) = code_files(folder)
    good = file.read_bytes()
    file.write_bytes(good[: int(part * len(good))])
    assert await call(folder, giving(1)) == 1
    assert file.read_bytes() == good


async def test_code_of_another_module_is_not_run(folder: Path) -> None:
    """Good code in the wrong place, and code that nobody vouches for, are removed."""
    assert await call(folder, giving(1)) == 1
    (one,) = code_files(folder)
    assert await call(folder, giving(2)) == 2
    (two,) = set(code_files(folder)) - {one}
    code_of_two = two.read_bytes()
    one.write_bytes(code_of_two)
    assert await call(folder, giving(1)) == 1
    assert one.read_bytes() != code_of_two
    for digest in (folder / "digests").iterdir():
        digest.unlink()
    before = looks(folder)
    assert await call(folder, giving(1)) == 1
    after = looks(folder)
    assert set(after) == {one}
    assert after[one][:2] != before[one][:2]


async def test_digests_go_with_their_files(folder: Path) -> None:
    """wasmtime limits the size of its cache; what is kept about it does not grow either."""
    assert await call(folder, giving(1)) == 1
    (one,) = code_files(folder)
    one.unlink()
    assert await call(folder, giving(2)) == 2
    (two,) = code_files(folder)
    assert [path.name for path in (folder / "digests").iterdir()] == [
        f"{two.parent.name}+{two.name}"
    ]


def spoil(folder: Path, mode: str) -> str:
    """Make the folder one that must not be used; what the error says about it."""
    if mode == "file":
        folder.write_bytes(b"")
        return "is not a folder"
    if mode == "link":
        (folder.parent / "real").mkdir(mode=0o700)
        folder.symlink_to(folder.parent / "real")
        return "is a symbolic link"
    folder.mkdir(mode=0o700)
    if mode == "wasmtime is open":
        (folder / "wasmtime").mkdir()
        (folder / "wasmtime").chmod(0o770)
        return r"is open to others \(mode 0770\)"
    if mode == "parent is open":
        folder.parent.chmod(0o777)
        return "could be replaced by anybody"
    folder.chmod(int(mode, 8))
    return rf"is open to others \(mode {mode}\)"


MODES = ["0755", "0750", "0701", "0720", "file", "link", "wasmtime is open", "parent is open"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_folder_that_others_could_use_is_refused(folder: Path, mode: str) -> None:
    """By name and with the reason, before anything is opened; and it is left as it was."""
    says = spoil(folder, mode)
    before = folder.lstat()
    with pytest.raises(CacheDirError, match=says) as caught:
        await call(folder, giving(1))
    assert str(folder) in str(caught.value)
    assert folder.lstat().st_mode == before.st_mode
    assert not code_files(folder)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """The system's reason is the error's cause."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheDirError, match="can't be used") as caught:
        await call(tmp_path / "file" / "code", giving(1))
    assert isinstance(caught.value, WasmCacheError)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_folder_of_somebody_else_is_refused(folder: Path) -> None:
    """Even if root could use it."""
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)
    with pytest.raises(CacheDirError, match="belongs to user 12345, not to 0"):
        await call(folder, giving(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_folder_in_one_of_somebody_else_is_refused(folder: Path) -> None:
    """Who owns that one could put another in its place, whatever its mode is."""
    folder.mkdir(mode=0o755)
    os.chown(folder, 12345, -1)
    with pytest.raises(CacheDirError, match="could be replaced by user 12345"):
        await call(folder / "code", giving(1))


def of_ours(folder: Path) -> set[Path]:
    """All files but wasmtime's, which it writes in a thread of its own, whenever it likes."""
    return {file for file in folder.rglob("*") if folder / "wasmtime" not in file.parents}


async def test_a_full_disk_is_one_error_and_leaves_nothing(
    folder: Path,
) -> None:
    """No half-written file stays, of the settings or of a digest."""
    await call(folder, giving(1))
    there = of_ours(folder)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # no file can have even one byte
    try:
        with pytest.raises(CacheDirError, match="can't be used"):
            CodeCache(folder, STACK)
        with pytest.raises(OSError, match="too large"):
            write_whole(folder / "digests" / "new", b"digest")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert of_ours(folder) == there


def test_a_file_that_is_tidied_away_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another process: the error says what could not be done."""

    def replace(name: str, _: Path) -> None:
        Path(name).unlink()
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError, match="no"):
        write_whole(tmp_path / "new", b"digest")


async def test_a_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    """As any other that can't be a folder's."""
    with pytest.raises(CacheDirError, match="can't be used"):
        await call(tmp_path / "co\0de", giving(1))


async def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """wasmtime reads it as UTF-8."""
    with pytest.raises(CacheDirError, match="UTF-8"):
        await call(tmp_path / os.fsdecode(b"\xff"), giving(1))


def stored(code: bytes) -> bytes:
    """A file that wasmtime would believe: one frame of zstd, not compressed."""
    header = b"\x28\xb5\x2f\xfd\xa0" + len(code).to_bytes(4, "little")
    return header + (len(code) << 3 | 1).to_bytes(3, "little") + code


def test_damage_that_was_not_seen_before_is_not_believed(folder: Path, plain: int) -> None:
    """Where wasmtime chokes on a file, the module is compiled anew and the cache is emptied."""
    code_cache = CodeCache(folder, STACK)
    module = code_cache.compile(plain, OPTIMIZING, giving(1))
    out = native.ByteVec()
    native.module_serialize(module, byref(out))
    native.module_delete(module)
    code = native.take_bytes(out)
    (file,) = code_files(folder)
    native.module_delete(code_cache.compile(plain, OPTIMIZING, giving(2)))
    # Most damage goes unnoticed there, or is noticed early; some makes it fail.
    for at in range(0, len(code) - 600, 300):
        file.write_bytes(stored(code[:at] + b"\xff" * 600 + code[at + 600 :]))
        try:
            native.module_delete(new_module(code_cache._engines[OPTIMIZING], giving(1)))
        except InvalidModuleError:
            break
    status = file.lstat()
    # As if it had been damaged after the look at it.
    code_cache._good[file] = (status.st_ino, status.st_mtime_ns, status.st_size)
    native.module_delete(code_cache.compile(plain, OPTIMIZING, giving(1)))
    assert code_files(folder) == []
    native.module_delete(code_cache.compile(plain, OPTIMIZING, giving(1)))
    assert code_files(folder) == [file]


def test_what_is_no_module_leaves_the_cache_alone(folder: Path, plain: int) -> None:
    """An upload that does not compile says nothing about the cache."""
    code_cache = CodeCache(folder, STACK)
    native.module_delete(code_cache.compile(plain, OPTIMIZING, giving(1)))
    before = looks(folder)
    with pytest.raises(InvalidModuleError):
        code_cache.compile(plain, OPTIMIZING, giving(1)[:-3])
    assert looks(folder) == before != {}


@pytest.mark.parametrize("how", ["opened", "removed", "replaced"])
async def test_a_folder_that_changes_while_it_is_used_is_used_no_longer(
    folder: Path, how: str
) -> None:
    """Compiling goes on without it; nothing is read from there or written there."""
    async with quiet_cache(cache_dir=folder) as cache:
        await cache.register("f", giving(1), args=(), returns="i64", export="f")
        away = folder.rename(folder.with_name("away"))
        if how == "opened":
            away.rename(folder).chmod(0o755)
        if how == "replaced":
            folder.symlink_to(away)
        before = len(code_files(folder))
        g = await cache.register("g", giving(2), args=(), returns="i64", export="f")
        assert await g.call() == 2
        assert len(code_files(folder)) == before
        assert folder.exists() is (how != "removed")


async def test_two_caches_may_share_a_folder(folder: Path) -> None:
    """At the same time; what one compiles, the other finds, and what it can't is compiled."""
    async with quiet_cache(cache_dir=folder) as one, quiet_cache(cache_dir=folder) as two:
        for number in range(4):
            caches = (one, two) if number % 2 else (two, one)
            for cache in caches:
                f = await cache.register(
                    f"f{number}", giving(number), args=(), returns="i64", export="f"
                )
                assert await f.call() == number
                after = looks(folder)
                assert len(after) == number + 1
        async with trio.open_nursery() as nursery:
            for cache in (one, two):
                for number in range(4, 12):
                    register = lambda c=cache, n=number: c.register(  # noqa: E731
                        f"f{n}", giving(n), args=(), returns="i64", export="f"
                    )
                    nursery.start_soon(register)
    for number in range(12):
        assert await call(folder, giving(number)) == number


async def test_processes_that_compile_use_it_too(folder: Path) -> None:
    """With `compile_memory`, too, what was compiled once is there after a restart."""
    found = []
    for _ in range(2):
        async with quiet_cache(cache_dir=folder, compile_memory=1024 * KiB * KiB) as cache:
            f = await cache.register("f", giving(1), args=(), returns="i64", export="f")
            assert await f.call() == 1
        found.append(looks(folder))
    assert found[0] == found[1] != {}


async def test_it_is_fixed_while_the_cache_is_open(folder: Path) -> None:
    """As the stack's size is; and without it nothing is written anywhere."""
    async with quiet_cache() as cache:
        with pytest.raises(ValueError, match="cache_dir can't be changed"):
            cache.resize(cache_dir=folder)
    assert not folder.exists()


async def test_settings_are_left_nowhere(folder: Path) -> None:
    """The file that told wasmtime about the folder is gone."""
    await call(folder, giving(1))
    assert {path.name for path in folder.iterdir()} == {"wasmtime", "digests", "locks", "states"}


def put(place: Path, what: str) -> None:
    """Put something at a place that is no code of ours, and would not end if it was read.

    A thread of wasmtime's may write statistics to that place at the same time: the place is then
    cleared anew.
    """
    while True:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            _make(place, what)
            return


def _make(place: Path, what: str) -> None:
    if what == "pipe":
        os.mkfifo(place, 0o600)
    elif what == "endless":
        place.symlink_to("/dev/zero")
    elif what == "loop":
        place.symlink_to(place.name)
    elif what == "folder":
        place.mkdir(mode=0o700)
        (place / "deep").mkdir()
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            at = os.open(place.parent, os.O_RDONLY)
            made.bind(f"/proc/self/fd/{at}/s")  # a longer path would not fit
            os.close(at)
            place.with_name("s").rename(place)  # over what is there
    elif what == "device":
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    elif what == "sparse":
        with place.open("wb") as file:
            file.truncate(2**40)
    else:
        place.write_bytes(b"x")
        os.chown(place, 12345, -1)


STRANGERS = "pipe endless loop folder socket device sparse other".split()
PLACES = "code new stats digest lock wasmtime modules compiler top".split()


def try_strangers(folder: Path, where: str) -> None:
    """Put each of them there, one after the other, and register."""
    assert trio.run(call, folder, giving(1)) == 1
    for what in STRANGERS:
        if what in ("device", "other") and os.geteuid() != 0:
            continue  # only root can make one
        (code,) = code_files(folder)
        (digest,) = (folder / "digests").iterdir()
        place = {
            "code": code,
            "new": code.with_name("new"),
            "stats": code.with_suffix(".stats"),
            "digest": digest,
            "lock": next((folder / "locks").iterdir(), folder / "locks" / "new"),
            "wasmtime": folder / "wasmtime" / "new",
            "modules": folder / "wasmtime" / "modules" / "new",
            "compiler": code.parent.parent / "new" / "new",
            "top": folder / "digests" / "new",
        }[where]
        place.parent.mkdir(exist_ok=True)
        put(place, what)
        assert trio.run(call, folder, giving(1)) == 1
        found = []
        for file in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a thread of wasmtime's renames some
                found.append(file.lstat())
        assert {stat.S_IFMT(one.st_mode) for one in found} <= {stat.S_IFDIR, stat.S_IFREG}
        assert sum(one.st_size for one in found if stat.S_ISREG(one.st_mode)) < 2**20
    print("survived")


@pytest.mark.parametrize("where", PLACES)
def test_nothing_is_opened_but_regular_files_of_ours(folder: Path, where: str) -> None:
    """Whatever else is there, wherever, does not hold `register` up, and is gone from its place."""
    script = """
        import sys
        from pathlib import Path
        from engine.test_code_cache import try_strangers

        try_strangers(Path(sys.argv[1]), sys.argv[2])
    """
    assert run_python(script, str(folder), where) == "survived\n"


def test_a_file_that_is_replaced_after_the_look_is_not_read(folder: Path) -> None:
    """By what opens it: neither link nor pipe is followed, and no more than its size is read."""
    folder.mkdir(mode=0o700)
    for what in STRANGERS[:5]:
        put(folder / what, what)
        with pytest.raises(OSError, match=r"no regular file|Is a directory"):
            list(read_ours(folder / what, 2**50))
    put(folder / "sparse", "sparse")
    with pytest.raises(StrangeFileError, match="at most 1000 bytes"):
        list(read_ours(folder / "sparse", 1000))
    pieces = read_ours(folder / "sparse", 2**50)
    next(pieces)
    (folder / "sparse").write_bytes(b"short now")
    assert list(pieces) == []


@pytest.mark.parametrize("name", ["~", "~/code", "~nobody"])
async def test_a_tilde_is_not_taken_for_a_name(name: str) -> None:
    """It would be a folder of that name in the working directory, which nobody means."""
    with pytest.raises(CacheDirError, match=r"is not expanded; give os\.path\.expanduser"):
        async with open_cache(CacheConfig(cache_dir=name), logger=Quiet()):
            raise AssertionError("it is open")
