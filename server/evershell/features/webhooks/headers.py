"""The headers of a request, as Standard Webhooks defines them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import json
from datetime import UTC, datetime

from standardwebhooks import Webhook as Signer

from evershell.core.event import Event
from evershell.core.ports import Sealing
from evershell.features.webhooks.rules import Webhook


def headers_of(
    webhook: Webhook,
    event: Event,
    content_type: str,
    body: bytes,
    sealing: Sealing,
    now: datetime,
    utc_seconds: float,
) -> dict[str, str]:
    """The headers, with a signature for each secret that is valid `now`.

    Receivers compare `utc_seconds`, which is signed, with their own clocks.

    Raises UnavailableError if this process does not have the key of a secret.
    """
    # A dot separates the parts of the signed text, so the id must not have one.
    message_id = f"{webhook.id}-{event.workspace_id}-{event.seq}"
    secrets = [webhook.sealed_secret]
    expires_at = webhook.previous_secret_expires_at
    if webhook.sealed_previous_secret is not None and expires_at is not None and now < expires_at:
        secrets.append(webhook.sealed_previous_secret)
    text, at = body.decode(), datetime.fromtimestamp(utc_seconds, UTC)
    signatures = [
        Signer(sealing.open(sealed, webhook.id)).sign(message_id, at, text) for sealed in secrets
    ]
    more = {}
    if webhook.sealed_headers is not None:
        more = json.loads(sealing.open(webhook.sealed_headers, webhook.id))
    return more | {
        "content-type": content_type,
        "user-agent": "Evershell-Webhooks",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
