"""Runtime tokens, as an agent makes them for its workspace and epoch."""

import time

from evershell.auth.pod_tokens import PodTokens
from evershell.pod.tokens import minute_of
from evershell.pod.tokens import runtime_token as token_of


def runtime_token(
    tokens: PodTokens, workspace_id: str, epoch: int, seconds: float | None = None
) -> str:
    """Returns the token that the agent makes at `seconds` since 1970; by default, now."""
    minute = minute_of(time.time() if seconds is None else seconds)
    return token_of(workspace_id, epoch, tokens.runtime_secret(workspace_id, epoch), minute)
