"""Which methods change something."""

from evershell.workspace.v1 import workspace_service_pb2
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import MethodOptions


def public_methods(*, with_effect: bool) -> frozenset[str]:
    """The paths of the public methods that change something, or of those that change nothing.

    REST offers the latter, and only these, with GET. Every stream is a read, even if REST does not
    offer it.
    """
    service = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
    return frozenset(
        f"/{service.full_name}/{method.name}"
        for method in service.methods
        if (method.server_streaming or _is_get(method.GetOptions())) is not with_effect
    )


def _is_get(options: MethodOptions) -> bool:
    pattern: str | None = options.Extensions[annotations_pb2.http].WhichOneof("pattern")
    return pattern == "get"
