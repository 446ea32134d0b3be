"""A policy of Open Policy Agent decides who may read and write documents.

The policy is cookbook/opa/access.rego. Policies import their memory, which `HostMemory` gives; the
ABI is in abis/opa.py.
"""

from pathlib import Path

import structlog
import trio
from abis.opa import OpaAbi

from trio_wasmcache import HostMemory, open_cache

POLICY = Path(__file__).parent / "cookbook" / "opa" / "access.wasm"
DATA = {"owners": {"plan": "ada", "diary": "bob"}, "public": {"plan": True}}


async def main() -> None:
    async with open_cache() as cache:
        allow = await cache.register(
            "allow",
            POLICY,
            args=("document",),
            returns="decision",
            export="opa_eval",
            abi=OpaAbi("access/allow", DATA),
            imports={"env": {"memory": HostMemory()}},
            missing="trap",  # built-in functions of OPA's host, and its `opa_abort`
            isolation="reset",
        )
        print(allow.isolation_verdict)
        for user, action in (("ada", "write"), ("bob", "read"), ("bob", "write")):
            request = {"user": user, "action": action, "document": "plan"}
            allowed = await allow.call(request)
            print(f"{user} may {'' if allowed else 'not '}{action} the plan")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main)
