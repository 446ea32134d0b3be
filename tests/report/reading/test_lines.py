"""From files to lines: what is packed, mixed, damaged, endless or not there."""

from __future__ import annotations

import gzip
import io
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from report.logs import busy_log, run_report, text_of

from trio_wasmcache.report.reading import lines
from trio_wasmcache.report.reading.lines import BLOCK, MAX_LINE, Reader
from trio_wasmcache.report.reading.notes import FINE, FLAWED, Notes


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


PACKED = pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
Pack = Callable[[bytes], bytes]
EVENT = b'{"event": "wasmcache.opened"}'


def read(*paths: str | Path) -> tuple[Reader, list[bytes]]:
    """All lines that may be events."""
    reader = Reader([str(path) for path in paths], Notes(lambda _: None))
    found = [line for block in reader.blocks() for line in block]
    reader.tell()
    return reader, found


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@PACKED
def test_packed_files_are_read_like_plain_ones(pack: Pack, tmp_path: Path) -> None:
    """What tells is how they begin, not what they are called."""
    data = EVENT + b"\nelsewhere\n" + EVENT + b"\n"
    plain, kept = read(save(tmp_path / "log", data))
    packed, same = read(save(tmp_path / "packed", pack(data)))
    assert kept == same == [EVENT, EVENT]
    assert plain.counts == packed.counts
    assert (plain.counts.lines, plain.counts.foreign) == (3, 1)


@PACKED
def test_a_file_of_several_packed_parts(pack: Pack, tmp_path: Path) -> None:
    """As `cat` makes them, and whoever appends to a packed log; a line may go on in the next."""
    whole = EVENT * 3 + b"\n"
    parts = pack(whole[:40]) + pack(b"") + pack(whole[40:]) + pack(EVENT + b"\n")
    _, found = read(save(tmp_path / "log", parts))
    assert found == [EVENT * 3, EVENT]


@PACKED
@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-1],
        lambda packed: packed + b"and this",
    ],
    ids=["half", "cut", "longer"],
)
def test_a_damaged_packed_file(pack: Pack, spoil: Pack, tmp_path: Path) -> None:
    """What can be unpacked is read, and the status says that it is not all."""
    data = b"".join(b'{"event": "wasmcache.opened", "at": %d}\n' % (n * n) for n in range(20_000))
    reader, found = read(save(tmp_path / "log", spoil(pack(data))))
    assert reader.notes.status == FLAWED
    assert len(reader.notes.texts) in (1, 2)  # the second: the last line is half written
    assert "log: damaged: " in reader.notes.texts[0]
    assert reader.notes.texts[0].endswith("; what came before is analysed")
    assert found == data.split(b"\n")[: len(found)]
    assert len(found) <= 20_000


@PACKED
def test_a_packed_file_with_a_hole(pack: Pack, tmp_path: Path) -> None:
    """Is told to be damaged; what gzip makes of the bytes after the hole is from elsewhere."""
    data = b"".join(b'{"event": "wasmcache.opened", "at": %d}\n' % (n * n) for n in range(20_000))
    packed = bytearray(pack(data))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    reader, found = read(save(tmp_path / "log", bytes(packed)))
    assert "damaged: " in reader.notes.texts[0]
    assert reader.notes.status == FLAWED
    assert found[:1000] == data.split(b"\n")[: len(found)][:1000]


def test_what_comes_before_the_damage_is_kept(tmp_path: Path) -> None:
    """Also what was unpacked in the step that failed."""
    kept = gzip.compress(EVENT + b"\n")
    reader, found = read(save(tmp_path / "log", kept + b"\x1f\x8b\x08 not gzip"))
    assert found == [EVENT]
    assert reader.notes.status == FLAWED


@PACKED
def test_a_file_made_to_burst(pack: Pack, tmp_path: Path) -> None:
    """A few KB that unpack to 100 MB without a line break are passed over, block by block."""
    largest = 0
    bomb = save(tmp_path / "log", pack(bytes(100 * 2**20)) + pack(b"\n" + EVENT + b"\n"))
    assert bomb.stat().st_size < 200_000
    real = lines.read_some

    def watched(stream: io.BufferedIOBase, size: int) -> tuple[bytes, Exception | None]:
        nonlocal largest
        data, error = real(stream, size)
        largest = max(largest, len(data))
        return data, error

    lines.read_some = watched
    tracemalloc.start()
    try:
        reader, found = read(bomb)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        lines.read_some = real
    assert most < 8 * BLOCK
    assert found == [EVENT]
    assert largest <= BLOCK
    assert (reader.counts.lines, reader.counts.foreign) == (2, 1)


def test_a_line_that_is_too_long_is_no_event(tmp_path: Path) -> None:
    """Whether it ends within a block, in a later one, or not at all; others are read."""
    short = EVENT[:-1] + b', "x": "' + b"y" * (MAX_LINE - len(EVENT) - 10) + b'"}'
    long = EVENT[:-1] + b', "x": "' + b"y" * MAX_LINE + b'"}'
    longer = EVENT[:-1] + b', "x": "' + b"y" * (2 * BLOCK) + b'"}'
    log = b"\n".join([EVENT, long, short, longer, EVENT, longer])
    reader, found = read(save(tmp_path / "log", log))
    assert found == [EVENT, short, EVENT]
    assert (reader.counts.lines, reader.counts.foreign) == (6, 3)
    assert reader.notes.status == FINE


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_the_last_line(ending: bytes, tmp_path: Path) -> None:
    """It may lack its end, if it is whole."""
    reader, found = read(save(tmp_path / "log", EVENT + b"\n" + EVENT + ending))
    assert [line.strip() for line in found] == [EVENT, EVENT]
    assert reader.notes.texts == []


@pytest.mark.parametrize("half", [EVENT[:9], EVENT[:-1], b'{"a": ' + b"[" * 100_000])
def test_a_half_written_last_line(half: bytes, tmp_path: Path) -> None:
    """Is left out and told, and nothing is wrong: the writer may be at it right now."""
    reader, found = read(save(tmp_path / "log", EVENT + b"\n" + half))
    assert found == [EVENT]
    assert reader.counts.half_written == 1
    assert (reader.counts.lines, reader.counts.foreign) == (2, 0)
    assert reader.notes.texts == [f"{tmp_path}/log: the last line is half written; it is left out"]
    assert reader.notes.status == FINE


def test_lines_from_elsewhere(tmp_path: Path) -> None:
    """Are skipped and counted; empty ones are nothing; other bytes do no harm."""
    garbage = os.urandom(5000).replace(b"\n", b"") + b"\n\xff\xfe\0\n\n \n"
    reader, found = read(save(tmp_path / "log", garbage + EVENT + b"\n" + b"plain text\n"))
    assert found == [EVENT]
    assert (reader.counts.lines, reader.counts.foreign) == (4, 3)
    assert reader.notes.texts == ["3 lines of 4 are from elsewhere: skipped"]
    one, _ = read(save(tmp_path / "log", b"one\n"))
    assert one.notes.texts == ["1 line of 1 is from elsewhere: skipped"]


def test_what_can_not_be_read(tmp_path: Path) -> None:
    """Is told by name, and the other files are read."""
    good = save(tmp_path / "good", EVENT + b"\n")
    unreadable = Path("/proc/self/mem")
    reader, found = read(tmp_path / "missing", tmp_path, unreadable, good)
    assert found == [EVENT]
    assert reader.opened == 1
    assert reader.notes.status == FLAWED
    assert reader.notes.texts == [
        f"{tmp_path}/missing: No such file or directory",
        f"{tmp_path}: Is a directory",
        "/proc/self/mem: Input/output error",
    ]


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is `-`, packed or not, and stays open."""
    for data in (EVENT, gzip.compress(EVENT), zstd(EVENT)):
        source = io.BytesIO(data)
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=source))
        reader, found = read("-")
        assert found == [EVENT]
        assert reader.size is None
        assert not source.closed


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """A log that another program gives through a named pipe is not looked at beforehand."""
    pipe, plain = tmp_path / "pipe", save(tmp_path / "log", EVENT + b"\n")
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(EVENT + b"\n",))
    writer.start()
    reader, found = read(plain, pipe)
    writer.join()
    assert found == [EVENT, EVENT]
    assert reader.size is None


def test_progress_is_told_in_bytes_of_the_file(tmp_path: Path) -> None:
    """All of them, whatever they unpack to."""
    advanced: list[tuple[int, int]] = []
    path = save(tmp_path / "log", gzip.compress(EVENT * 1000 + b"\n"))
    reader = Reader([str(path)], Notes(lambda _: None), lambda *both: advanced.append(both))
    assert list(reader.blocks())
    assert sum(taken for taken, _ in advanced) == reader.size == path.stat().st_size
    assert sum(unpacked for _, unpacked in advanced) == len(EVENT) * 1000 + 1


@pytest.mark.parametrize("stamp", [None, "2026-01-01T00:00:00.%03dZ", 1767225600.5])
def test_rotated_files_are_read_oldest_first(
    stamp: str | float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their timestamps if all have one, else by the numbers of their events."""
    log = busy_log()
    for number, line in enumerate(log.lines):
        if isinstance(stamp, str):
            line["timestamp"] = stamp % number
        elif stamp is not None:
            line["timestamp"] = stamp + number
    parts = [log.lines[start : start + 50] for start in (0, 50, 100)]
    paths = [tmp_path / name for name in ("app.log.2.gz", "app.log.1", "app.log")]
    for path, part in zip(paths, parts, strict=True):
        text = f"starting\n{text_of(part)}".encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    ran = run_report(capsys, *reversed(paths), paths[0])
    assert ran.status == 0
    assert ran.document["lines"]["events"] == len(log.lines[:150])
    assert (ran.cache["sequence"]["late"], ran.cache["sequence"]["repeated"]) == (0, 0)


def test_files_that_say_nothing_of_their_age(tmp_path: Path) -> None:
    """Keep the order in which they were given."""
    paths = [save(tmp_path / name, EVENT + f" {name}\n".encode()) for name in "ba"]
    _, found = read(*paths)
    assert [line[-1:] for line in found] == [b"b", b"a"]
    none = save(tmp_path / "none", b"nothing\n")
    other = save(tmp_path / "other", EVENT[:-1] + b', "seq": 7, "cache": "x"}\n')
    mixed = save(tmp_path / "mixed", EVENT[:-1] + b', "seq": 1, "cache": "y"}\n')
    assert [b'"x"' in line for line in read(none, other, mixed)[1]] == [True, False]
