"""Runtime tokens, as the agent of a workspace and an epoch makes them."""

import time

from evershell.auth.pod_tokens import PodTokens
from evershell.pod.tokens import minute_of
from evershell.pod.tokens import runtime_token as token_of


def runtime_token(
    tokens: PodTokens, workspace_id: str, epoch: int, seconds: float | None = None
) -> str:
    """The token that the agent makes at this time, in seconds since 1970; now by default."""
    minute = minute_of(time.time() if seconds is None else seconds)
    return token_of(workspace_id, epoch, tokens.runtime_secret(workspace_id, epoch), minute)
