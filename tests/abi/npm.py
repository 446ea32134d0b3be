"""Packages of npm, for the tests that run real modules and compare with their own JavaScript.

They are fetched into a temporary folder, their install scripts are not run, and nothing of them is
kept. Where npm or node is missing, or nothing can be fetched, these tests are skipped, and say so.
`WASMCACHE_NPM` can name a folder where the packages are installed already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGES = (
    "xxhash-wasm@1.1.0",
    "lz4-wasm-nodejs@0.9.2",
    "snappy-wasm@0.3.0",
    "cjs-module-lexer@2.3.0",
    "source-map@0.8.0",
    "@open-policy-agent/opa-wasm@1.10.0",
    "@sqlite.org/sqlite-wasm@3.41.2",
    "@jitl/quickjs-wasmfile-release-sync@0.32.0",
    "argon2-browser@1.18.0",
    "web-tree-sitter@0.27.2",
    "tree-sitter-json@0.24.8",
    "brotli-wasm@3.0.1",
    "@resvg/resvg-wasm@2.6.2",
)
FETCH_SECONDS = 120


def install(folder: Path) -> Path:
    """Return the folder `node_modules` with the packages in it, installed below another folder."""
    given = os.environ.get("WASMCACHE_NPM")
    if given:
        return Path(given) / "node_modules"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        skip("npm and node are not installed")
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--fetch-retries=0")
    try:
        done = subprocess.run(
            [npm, "install", *options, "--prefix", str(folder), *PACKAGES],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        skip(f"npm could not fetch them in {FETCH_SECONDS} seconds")
    if done.returncode != 0:
        skip(f"npm could not fetch them: {done.stderr.strip()[-300:]}")
    return folder / "node_modules"


def skip(reason: str) -> None:
    said = f"NO MODULE FROM NPM WAS TESTED: {reason}"
    print(f"\n{said}", file=sys.__stderr__)
    pytest.skip(said)


def node(packages: Path, script: str, *values: Any) -> Any:
    """What a script hands to `answer`, run where the packages are; `values` are its arguments."""
    program = f"""
        const answer = (value) => console.log(JSON.stringify(value));
        const values = JSON.parse(process.argv[1]);
        (async () => {{ {script} }})();"""
    done = subprocess.run(
        ["node", "-e", program, json.dumps(values)],
        cwd=packages.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
