"""Policies of Open Policy Agent, with the ABI of `examples/abis/opa.py`.

`examples/cookbook/opa/access.wasm` was written by hand, as OPA's compiler is in no package
registry. OPA's own answers for the same rules are stored, and OPA's own SDK runs the same module in
node. Where an `opa` is installed, the rules are compiled by it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import trio
from abi.npm import node
from abis.opa import OpaAbi
from engine.support import ROOT, quiet_cache

from trio_wasmcache import (
    AbiError,
    Function,
    HostFunction,
    HostMemory,
    InstanceCache,
    TrapError,
    current_lease,
)
from trio_wasmcache.testing import check_invariants

OPA = ROOT / "examples" / "cookbook" / "opa"
ACCESS = OPA / "access.wasm"
GOLDEN = json.loads((ROOT / "tests" / "udfs" / "opa_golden.json").read_text())
ENTRYPOINTS = GOLDEN["columns"][1:]
DOCUMENTS = [row[0] for row in GOLDEN["rows"]]
MEMORY = HostMemory()


async def add(
    cache: InstanceCache, entrypoint: str, policy: Any = ACCESS, **more: Any
) -> Function[Any]:
    more = {"imports": {"env": {"memory": MEMORY}}, "missing": "trap", **more}
    return await cache.register(
        entrypoint,
        policy,
        args=("document",),
        returns="decision",
        export="opa_eval",
        abi=OpaAbi(entrypoint, GOLDEN["data"]),
        called_on_null=True,
        **more,
    )


async def check_golden(policy: Path) -> None:
    """A policy made of the rules decides as OPA does, in every isolation, and keeps its size."""
    async with quiet_cache() as cache:
        for number, entrypoint in enumerate(ENTRYPOINTS, 1):
            expected = [row[number] for row in GOLDEN["rows"]]
            for isolation in ("reuse", "fresh", "reset"):
                f = await add(cache, entrypoint, policy, isolation=isolation, replace=True)
                assert f.isolation_verdict.startswith(f"{isolation}: ")
                async with f.acquire() as lease:
                    assert [await lease.call(one) for one in DOCUMENTS] == expected
                    assert list(await lease.map([DOCUMENTS * 20])) == expected * 20
                    size, fuel = lease.size, set()
                    for _ in range(20):
                        await lease.call(DOCUMENTS[0])
                        fuel.add(lease.fuel_consumed)
                    assert (lease.size, len(fuel)) == (size, 1)  # nothing of a call is left
                assert [await f.call(one) for one in DOCUMENTS[:5]] == expected[:5]
        check_invariants(cache)


async def test_it_decides_as_opa_does() -> None:
    """Decisions, undefined ones included, are those that OPA gave for the same rules."""
    await check_golden(ACCESS)


def test_opas_compiler_makes_the_same_of_the_rules(tmp_path: Path) -> None:
    """The rules, compiled by an `opa` of this machine."""
    opa = shutil.which("opa")
    if opa is None:
        said = "NO POLICY WAS COMPILED BY OPA: opa is not installed"
        print(f"\n{said}", file=sys.__stderr__)
        pytest.skip(said)
    entrypoints = [word for name in ENTRYPOINTS for word in ("-e", name)]
    bundle = tmp_path / "bundle.tar.gz"
    command = [opa, "build", "-t", "wasm", *entrypoints, "-o", bundle, OPA / "access.rego"]
    subprocess.run(command, check=True, timeout=600)
    with tarfile.open(bundle) as packed:
        policy = packed.extractfile("/policy.wasm")
        assert policy is not None
        (tmp_path / "policy.wasm").write_bytes(policy.read())
    trio.run(check_golden, tmp_path / "policy.wasm")


def test_opas_own_sdk_runs_the_same_module(packages: Path) -> None:
    """So what the ABI was tested with is what OPA's modules are."""
    found = node(
        packages,
        """const { loadPolicy } = require("@open-policy-agent/opa-wasm");
           const [file, data, documents, entrypoints] = values;
           const policy = await loadPolicy(require("fs").readFileSync(file));
           policy.setData(data);
           answer(documents.map((one) => [one, ...entrypoints.map((name) => {
             const rows = policy.evaluate(one, name);
             return rows.length ? rows[0].result : null;
           })]));""",
        *(str(ACCESS), GOLDEN["data"], DOCUMENTS, ENTRYPOINTS),
    )
    assert found == GOLDEN["rows"]


async def test_a_document_larger_than_the_memory_makes_it_grow() -> None:
    """Up to its limit; the instance goes on."""
    async with quiet_cache() as cache:
        f = await add(cache, "access/allow")
        async with f.acquire() as lease:
            large = {**DOCUMENTS[0], "note": "x" * 300_000}
            before = lease.memory.size
            assert await lease.call(large) is True
            assert lease.memory.size > before + 300_000
            assert await lease.call(DOCUMENTS[1]) is False


async def test_what_is_no_document_is_refused() -> None:
    """Before any wasm runs; and so is an entrypoint that the policy does not have."""
    async with quiet_cache() as cache:
        f = await add(cache, "access/allow")
        async with f.acquire() as lease:
            with pytest.raises(TypeError, match="not JSON serializable"):
                await lease.call({"user": b"ada"})
            assert await lease.call(DOCUMENTS[0]) is True
        other = await add(cache, "access/deny")
        with pytest.raises(ValueError, match="there are access/allow, access/owner"):
            await other.call({})


async def test_a_policy_that_aborts_says_why() -> None:
    """With a host function in place of the trap; a reset then leaves a seat, if it has a start."""

    def abort(at: int) -> None:
        raise RuntimeError(f"the policy aborted at {at}")

    given = {"memory": MEMORY, "opa_abort": HostFunction(abort, ("u32",), ())}
    nonsense = """(module (import "env" "memory" (memory 1))
        (import "env" "opa_abort" (func $a (param i32)))
        (data (i32.const 8) "{\\"x\\": 0}") (data (i32.const 32) "%s")
        (func (export "opa_malloc") (param i32) (result i32) (i32.const 1024))
        (func (export "opa_json_parse") (param i32 i32) (result i32) (i32.const 0))
        (func (export "opa_heap_ptr_get") (result i32) (i32.const 4096))
        (func (export "entrypoints") (result i32) (i32.const 8))
        (func (export "opa_json_dump") (param i32) (result i32) (local.get 0))
        (func (export "opa_eval") (param i32 i32 i32 i32 i32 i32 i32) (result i32) %s))"""
    async with quiet_cache() as cache:
        aborts = nonsense % ("", "(call $a (i32.const 7)) (unreachable)")
        f = await add(cache, "x", aborts, imports={"env": given})
        with pytest.raises(RuntimeError, match="the policy aborted at 7"):
            await f.call({})
        f = await add(cache, "x", aborts, replace=True)
        with pytest.raises(TrapError, match=r"the guest called env\.opa_abort"):
            await f.call({})
        for text, said in (("[", "no JSON"), ("[" * 60_000, "no JSON")):
            f = await add(cache, "x", nonsense % (text, "(i32.const 32)"), replace=True)
            with pytest.raises(AbiError, match=said):
                await f.call({})
        f = await add(cache, "x", nonsense % ("", "(i32.const -1)"), replace=True)
        with pytest.raises(AbiError):
            await f.call({})
        check_invariants(cache)


async def test_a_builtin_function_of_the_host_calls_the_policy_back() -> None:
    """It reads its argument, and makes its result, by functions of the policy."""
    asks = """(module (import "env" "memory" (memory 2))
        (import "env" "opa_builtin1" (func $ask (param i32 i32 i32) (result i32)))
        (data (i32.const 8) "{\\"x\\": 0}") (global $heap (mut i32) (i32.const 4096))
        (func (export "opa_malloc") (param $size i32) (result i32)
          (global.get $heap) (global.set $heap (i32.add (global.get $heap) (local.get $size))))
        (func $same (export "opa_json_parse") (param i32 i32) (result i32) (local.get 0))
        (func (export "opa_heap_ptr_get") (result i32) (global.get $heap))
        (func (export "entrypoints") (result i32) (i32.const 8))
        (func (export "opa_json_dump") (param i32) (result i32) (local.get 0))
        (func (export "opa_eval") (param $_ i32) (param $entrypoint i32) (param $data i32)
          (param $at i32) (param $size i32) (param $free i32) (param $format i32) (result i32)
          (i32.store8 (local.get $free) (i32.const 0))
          (global.set $heap (i32.add (local.get $free) (i32.const 1)))
          (call $ask (i32.const 3) (i32.const 0) (local.get $at))))"""

    async def shout(number: int, context: int, value: int) -> int:
        lease = current_lease()
        at = await lease.invoke("opa_json_dump", value)
        text = lease.memory.read(at, 100).partition(b"\0")[0]
        made = json.dumps([{"result": json.loads(text).upper()}]).encode() + b"\0"
        at = await lease.invoke("opa_malloc", len(made))
        lease.memory.write(at, made)
        found: int = await lease.invoke("opa_json_parse", at, len(made))
        return found

    host = HostFunction(shout, ("i32",) * 3, ("i32",), reentrant=True)
    async with quiet_cache() as cache:
        f = await add(cache, "x", asks, imports={"env": {"memory": MEMORY, "opa_builtin1": host}})
        async with f.acquire() as lease:
            assert [await lease.call(word) for word in ("one", "two")] == ["ONE", "TWO"]
        check_invariants(cache)
