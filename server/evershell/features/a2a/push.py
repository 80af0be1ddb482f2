"""Push configurations of A2A, which are webhooks of one task.

The id of a configuration is the name of its webhook. A new configuration replaces an existing one
with the same id, and gets all events of the task, including earlier ones (docs/a2a.md).
"""

from collections.abc import Mapping
from hashlib import sha256

from a2a.types import a2a_pb2

from evershell.core.event import TASK_EVENT_TYPES
from evershell.core.validation import Fields
from evershell.features.a2a.payload import FORM
from evershell.features.parts import TaskWebhook

TOKEN_HEADER = "X-A2A-Notification-Token"  # noqa: S105 - a name
_AUTHORIZATION = "Authorization"
_MAX_SECRET_CHARACTERS = 4096
_ID_CHARACTERS = 32


def decode_push(
    config: a2a_pb2.TaskPushNotificationConfig, workspace_id: str, task_id: str
) -> TaskWebhook:
    """The webhook of a configuration. Raises Failure validation_error.

    If the configuration has no id, an id is derived from its URL, so that a repeat of the request
    replaces the configuration.
    """
    fields = Fields()
    auth = config.authentication
    for name, value in (
        ("token", config.token),
        ("authentication.scheme", auth.scheme),
        ("authentication.credentials", auth.credentials),
    ):
        if not value.isascii() or not (value.isprintable() or not value):
            fields.reject(name, "must have only printable ASCII characters")
        fields.text(name, value, max_characters=_MAX_SECRET_CHARACTERS)
    if config.id:
        fields.identifier("id", config.id)
    if config.HasField("authentication") and not auth.scheme:
        fields.reject("authentication.scheme", "must not be empty")
    fields.check()
    config_id = config.id or sha256(config.url.encode()).hexdigest()[:_ID_CHARACTERS]
    return TaskWebhook(
        workspace_id=workspace_id,
        task_id=task_id,
        name=config_id,
        url=config.url,
        event_types=TASK_EVENT_TYPES,
        form=FORM,
        headers=_headers(config),
    )


def _headers(config: a2a_pb2.TaskPushNotificationConfig) -> Mapping[str, str]:
    headers = {}
    if config.token:
        headers[TOKEN_HEADER] = config.token
    if config.authentication.scheme:
        auth = config.authentication
        headers[_AUTHORIZATION] = f"{auth.scheme} {auth.credentials}".strip()
    return headers


def encode_push(webhook: TaskWebhook) -> a2a_pb2.TaskPushNotificationConfig:
    """The configuration, with the scheme of the authentication, but without secrets."""
    config = a2a_pb2.TaskPushNotificationConfig(
        tenant=webhook.workspace_id, id=webhook.name, task_id=webhook.task_id, url=webhook.url
    )
    if _AUTHORIZATION in webhook.headers:
        config.authentication.scheme = webhook.headers[_AUTHORIZATION].partition(" ")[0]
    return config
