"""The commands `webhooks add`, `list`, `remove`, `rotate`, `replay` and `deliveries`."""

import click

from evershell.cli import show
from evershell.cli.completion import complete_task, complete_webhook, complete_workspace
from evershell.cli.options import Call, service_options
from evershell.cli.terminal import Commands, printable, say, say_lines
from evershell.client import CreatedWebhook, EventType, RotatedSecret, Webhook

_TYPES = [each.value for each in EventType if each is not EventType.UNSPECIFIED]
_ARGUMENT = click.argument("webhook", shell_complete=complete_webhook)


@click.group(cls=Commands, help="Send events of your organization to a program of yours.")
def webhooks() -> None:
    """The group of the commands about webhooks."""


@webhooks.command(
    help="Create a webhook: send events to URL. Prints the secret that signs the requests, once."
)
@click.argument("receiver", metavar="URL")
@click.option(
    "--event",
    "event_types",
    type=click.Choice(_TYPES),
    multiple=True,
    default=[EventType.TASK_COMPLETED.value],
    metavar="TYPE",
    help="A type of events to send; may be repeated. Default: task_completed.",
)
@click.option("--description", default="", metavar="TEXT", help="A human-readable description.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="A repeated command with the same key creates nothing, and prints no secret.",
)
@service_options
def add(
    call: Call,
    receiver: str,
    event_types: tuple[str, ...],
    description: str,
    idempotency_key: str | None,
) -> None:
    """Creates a webhook. Without --json, prints only its secret to standard output."""
    created = call.client.webhooks.create(
        receiver, event_types, description=description, idempotency_key=idempotency_key
    )
    _print_secret(call, created)


@webhooks.command("list", help="List the webhooks of your organization, newest first.")
@service_options
def list_(call: Call) -> None:
    """Prints one line for each webhook."""
    listed = call.client.webhooks.list()
    if call.as_json:
        show.json_value({"webhooks": [each.to_dict() for each in listed]})
        return
    show.table(
        ["WEBHOOK", "URL", "EVENTS", "STATUS", "CREATED", "DESCRIPTION"],
        [
            (
                each.id,
                each.url,
                ",".join(each.event_types),
                "enabled" if each.disabled_at is None else "disabled",
                show.time(each.created_at),
                each.description,
            )
            for each in listed
        ],
        "Your organization has no webhooks.",
    )


@webhooks.command(help="Delete WEBHOOK. Nothing more is sent to it.")
@_ARGUMENT
@service_options
def remove(call: Call, webhook: str) -> None:
    """Deletes the webhook, and prints it."""
    deleted = call.client.webhooks.delete(webhook)
    if call.as_json:
        show.json_value(deleted.to_dict())
    else:
        say_lines(f"webhook {printable(deleted.id)}: deleted")


@webhooks.command(
    help="Replace the secret of WEBHOOK. For 24 hours, the previous one signs as well."
)
@_ARGUMENT
@service_options
def rotate(call: Call, webhook: str) -> None:
    """Replaces the secret. Without --json, prints only the new secret to standard output."""
    _print_secret(call, call.client.webhooks.rotate(webhook))


@webhooks.command(help="Send again what could not be delivered to WEBHOOK.")
@_ARGUMENT
@click.option("--task", metavar="ID", help="Only the delivery of this task.")
@service_options
def replay(call: Call, webhook: str, task: str | None) -> None:
    """Repeats the call until no failed delivery remains, or the call replays none."""
    replayed, remaining = 0, 1
    while remaining:
        result = call.client.webhooks.replay(webhook, task_id=task)
        replayed, remaining = replayed + result.replayed, result.remaining
        # Another call is already replaying the remaining deliveries.
        if not result.replayed:
            break
    if call.as_json:
        show.json_value({"replayed": replayed, "remaining": remaining})
    else:
        say_lines(f"{replayed} failed deliveries are sent again; {remaining} remain.")


@webhooks.command(help="List the deliveries of the events of TASK in WORKSPACE.")
@click.argument("workspace", shell_complete=complete_workspace)
@click.argument("task", shell_complete=complete_task)
@service_options
def deliveries(call: Call, workspace: str, task: str) -> None:
    """Prints one line for each webhook that gets events of the task."""
    listed = call.client.webhooks.deliveries(workspace, task)
    if call.as_json:
        show.json_value({"deliveries": [each.to_dict() for each in listed]})
        return
    show.table(
        ["WEBHOOK", "STATUS", "DELIVERED", "ATTEMPTS", "NEXT", "ERROR"],
        [
            (
                each.webhook_id,
                each.status.value,
                f"{each.delivered_seq} of {each.last_seq}",
                str(each.attempts),
                show.time(each.next_attempt_at),
                each.last_error,
            )
            for each in listed
        ],
        f"No webhook gets events of task {task}.",
    )


def _print_secret(call: Call, answer: CreatedWebhook | RotatedSecret) -> None:
    if call.as_json:
        show.json_value(answer.to_dict())
        return
    _print(answer.webhook)
    if not answer.secret:
        raise click.ClickException(
            "The webhook was created by an earlier call, and its secret is shown once. To replace "
            f"the secret: evershell webhooks rotate {printable(answer.webhook.id)}"
        )
    say(answer.secret)


def _print(webhook: Webhook) -> None:
    show.line("webhook", webhook.id, error=True)
    show.line("url", webhook.url, error=True)
    show.line("events", ", ".join(webhook.event_types), error=True)
    if webhook.previous_secret_expires_at is not None:
        expires_at = show.time(webhook.previous_secret_expires_at)
        show.line("previous", f"secret also signs until {expires_at}", error=True)
