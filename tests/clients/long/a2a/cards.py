"""The card of a workspace, as the client of a2a-sdk reads it."""

from typing import Any

import httpx
from a2a.client.card_resolver import A2ACardResolver

from tests.support.stack import Stack, Workspace


def card_url(stack: Stack, workspace: Workspace) -> str:
    """The URL of the card that callers with a credential can read."""
    return f"{stack.ready['rest_url']}/a2a/{workspace.id}/extendedAgentCard"


async def card_of(http: httpx.AsyncClient, stack: Stack, workspace: Workspace) -> Any:
    """The card of the workspace. `http` is a client that sends the credential."""
    base, _, path = card_url(stack, workspace).rpartition("/")
    return await A2ACardResolver(http, base, path).get_agent_card(
        http_kwargs={"headers": {"A2A-Version": "1.0"}}
    )
