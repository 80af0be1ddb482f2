"""The card of a workspace, from which the clients of the SDKs learn where to call."""

from typing import Any

from a2a.types import a2a_pb2

from tests.support.stack import Stack, Workspace


def card_of(stack: Stack, workspace: Workspace) -> Any:
    """The card, with both bindings and the workspace as their tenant."""
    found = (f"{stack.ready['rest_url']}/a2a", "HTTP+JSON"), (stack.ready["grpc_addr"], "GRPC")
    return a2a_pb2.AgentCard(
        name=workspace.id,
        capabilities=a2a_pb2.AgentCapabilities(streaming=True),
        supported_interfaces=[
            a2a_pb2.AgentInterface(
                url=url, protocol_binding=binding, tenant=workspace.id, protocol_version="1.0"
            )
            for url, binding in found
        ],
    )
