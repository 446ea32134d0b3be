"""``python -m tests.fuzz``: damaged, generated and random modules into register and call.

The inputs are tried in another process. If it dies or stands still, the input is kept in a file
that the report names, and another process goes on with the next. Exit status 1 if anything is
wrong. The nightly profile is the default; CI takes fewer inputs.
"""

from __future__ import annotations

import argparse
import collections
import json
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INPUTS = 10_000
# Seconds for one input, which takes some milliseconds; on a busy machine, some more.
PATIENCE = 60.0
# Bytes that a process may gain between its first caches and its last.
GROWTH = 64 * 1024 * 1024


class Fuzzing:
    """One run: what came of the inputs, and what was wrong."""

    def __init__(self, seed: int, inputs: int, keep: Path, crash_at: int) -> None:
        self.seed, self.inputs, self.keep, self.crash_at = seed, inputs, keep, crash_at
        self.outcomes = collections.Counter[str]()
        self.kinds = collections.Counter[str]()
        self.problems: list[str] = []
        self.resident: list[int] = []
        self.number = -1
        """Of the input that is being tried, or was last."""
        self.trying = False

    def run(self) -> None:
        self.keep.mkdir(parents=True, exist_ok=True)
        begin = 0
        while begin < self.inputs:
            with tempfile.TemporaryDirectory() as folder:
                self._worker(begin, Path(folder) / "input")
            begin = max(self.number, begin) + 1

    def _worker(self, begin: int, path: Path) -> None:
        command = [sys.executable, "-m", "tests.fuzz.worker", str(self.seed), str(begin)]
        command += [str(self.inputs), str(path), str(self.crash_at)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        errors: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        stdout, stderr = process.stdout, process.stderr

        def read() -> None:
            for line in stdout:
                lines.put(line)
            lines.put(None)

        readers = [threading.Thread(target=read, daemon=True)]
        readers.append(threading.Thread(target=lambda: errors.append(stderr.read()), daemon=True))
        for reader in readers:
            reader.start()
        self.trying, self.resident = False, []
        try:
            while (line := lines.get(timeout=PATIENCE)) is not None:
                self._note(json.loads(line), path)
            status = process.wait(PATIENCE)
            readers[1].join(PATIENCE)
            if status:
                said = "".join(errors).strip()[-2000:]
                self._wrong(f"the process ended with status {status}: {said}", path)
        except queue.Empty:
            process.kill()
            process.wait()
            self._wrong(f"nothing for {PATIENCE:g} seconds", path)
        if len(self.resident) > 4 and self.resident[-1] - max(self.resident[:2]) > GROWTH:
            self._wrong(
                f"resident memory went from {self.resident[0]} to {self.resident[-1]}", path
            )

    def _note(self, line: dict[str, Any], path: Path) -> None:
        if "begins" in line:
            self.number, self.trying = line["begins"], True
            self.kinds[line["kind"]] += 1
        elif "ends" in line:
            self.trying = False
            if line["wrong"]:
                self._wrong(line["outcome"], path)
            else:
                self.outcomes[line["outcome"]] += 1
        else:
            self.resident.append(line["resident"])

    def _wrong(self, what: str, path: Path) -> None:
        kept = self.keep / f"seed-{self.seed}-input-{self.number}.wasm"
        if path.exists():
            kept.write_bytes(path.read_bytes())
        self.problems.append(f"input {self.number}: {what}\n  kept in {kept}")

    def report(self) -> str:
        tried = sum(self.kinds.values())
        lines = [f"{tried} inputs of seed {self.seed}, {len(self.problems)} problems"]
        lines += [f"{count:8} {kind}" for kind, count in sorted(self.kinds.items())]
        lines += ["outcomes:"]
        lines += [f"{count:8} {outcome}" for outcome, count in self.outcomes.most_common()]
        if self.resident:
            first, last = self.resident[0] >> 20, self.resident[-1] >> 20
            lines.append(f"resident: {first} MiB after the first cache, {last} MiB after the last")
        return "\n".join([*lines, *self.problems])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"how many; default: {INPUTS}")
    parser.add_argument("--seed", type=int, default=1, help="other seeds are other inputs")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), metavar="FOLDER")
    parser.add_argument("--crash-at", type=int, default=-1, help="to see that a crash is seen")
    options = parser.parse_args()
    fuzzing = Fuzzing(options.seed, options.inputs, options.keep, options.crash_at)
    fuzzing.run()
    print(fuzzing.report())
    return 1 if fuzzing.problems else 0


if __name__ == "__main__":
    sys.exit(main())
