"""Converts the messages about holds."""

from evershell.workspace.v1 import hold_pb2, workspace_service_pb2

from evershell.server.core.event import Origin
from evershell.server.core.hold import Hold
from evershell.server.core.holds import HoldOrg
from evershell.server.pod.messages import timestamp


def decode_hold(request: workspace_service_pb2.HoldOrgRequest, origin: Origin) -> HoldOrg:
    """The request. Raises Failure validation_error."""
    return HoldOrg(reason=request.reason, origin=origin)


def encode_hold(org_id: str, hold: Hold | None) -> hold_pb2.Hold:
    """The hold of the organization, or that it has none."""
    if hold is None:
        return hold_pb2.Hold(org_id=org_id)
    return hold_pb2.Hold(
        org_id=org_id,
        on_hold=True,
        held_by=hold.held_by,
        held_since=timestamp(hold.held_since),
        reason=hold.reason,
    )
