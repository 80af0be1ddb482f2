"""The methods of agents, and calls whose credential is refused."""

from typing import Any

from evershell.agent.v1 import runtime_service_pb2

from tests.wire.api.running import Failed, Running

INTERNAL_METHODS = [
    method.name
    for method in runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"].methods
]
# The methods that take a runtime token. Bootstrap takes another one.
RUNTIME_METHODS = [name for name in INTERNAL_METHODS if name != "Bootstrap"]


async def unauthenticated(server: Running, method: str, metadata: Any) -> Failed:
    """Calls with this metadata, and returns the refusal."""
    seen = await server.raw(method, metadata)
    assert isinstance(seen, Failed)
    return seen
