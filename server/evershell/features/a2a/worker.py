"""What A2A adds to a worker: its service."""

from a2a.types import a2a_pb2_grpc

from evershell.api.handlers import Service
from evershell.api.method_options import A2A_SERVICE
from evershell.features.a2a.api import A2AServicer
from evershell.features.a2a.card import Endpoints
from evershell.features.a2a.errors import ERROR_FORM
from evershell.features.parts import WorkerParts, WorkerRoom


def in_worker(parts: WorkerParts) -> WorkerRoom:
    """The service, over the same store and agents as WorkspaceService."""
    servicer = A2AServicer(
        parts.store,
        parts.agents,
        parts.subscriptions,
        parts.feeds,
        parts.clock,
        Endpoints(parts.rest_url, parts.grpc_address, parts.find_org_slug),
        parts.task_webhooks,
        parts.model_without_price,
    )
    add = a2a_pb2_grpc.add_A2AServiceServicer_to_server
    return WorkerRoom(name="a2a", service=Service(add, servicer, A2A_SERVICE, ERROR_FORM))
