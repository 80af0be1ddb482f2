"""Use cases: read the agent card of a workspace."""

from evershell.core import errors
from evershell.core.caller import Caller
from evershell.core.ports import Workspaces
from evershell.core.validation import check_identifiers
from evershell.core.workspace import AgentCard, Workspace


async def get_agent_card(
    caller: Caller, workspace_id: str, store: Workspaces
) -> tuple[Workspace, AgentCard]:
    """The card of a workspace.

    Raises Failure: validation_error, permission_denied, workspace_not_found.
    """
    check_identifiers(workspace_id=workspace_id)
    permission = caller.permission("workspace:read")
    workspace, card = await store.get_agent_card(workspace_id, caller.org_id)
    return permission.check(workspace, workspace_id), card


async def get_public_card(workspace_id: str, store: Workspaces) -> tuple[Workspace, AgentCard]:
    """The card of a workspace, if the card is public.

    Otherwise, raises Failure workspace_not_found, or validation_error if the id is not valid.
    """
    check_identifiers(workspace_id=workspace_id)
    workspace, card = await store.get_agent_card(workspace_id)
    if workspace is None or not card.is_public:
        raise errors.workspace_not_found(workspace_id)
    return workspace, card
