"""A bot for Slack that shows and cancels the tasks of a channel. README.md says how to set it up.

`/tasks` shows what runs in the workspaces of the channel, each with a button that cancels it. A
webhook of the service tells the bot of the end of each task, and the bot posts it to the channel.
"""

import functools
import html
import json
import logging
import os
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from slack_bolt import App
from slack_bolt.adapter.wsgi import SlackRequestHandler
from slack_sdk import WebClient
from standardwebhooks import Webhook, WebhookVerificationError

from evershell.client import AgentUnreachableError, Client, Task

# The workspaces of each channel, by the channel's id: {"C0123456789": ["ws_…"]}.
CHANNELS: dict[str, list[str]] = json.loads(os.environ["CHANNELS"])
# Slack refuses a message with more blocks.
MAX_BLOCKS = 50
# Longer texts are cut, so that no block exceeds the length that Slack accepts.
MAX_CHARACTERS = 200

slack = WebClient(
    os.environ["SLACK_BOT_TOKEN"], base_url=os.environ.get("SLACK_API_URL", WebClient.BASE_URL)
)
app = App(client=slack, signing_secret=os.environ["SLACK_SIGNING_SECRET"])
slack_events = SlackRequestHandler(app)
webhook = Webhook(os.environ["WEBHOOK_SECRET"])
evershell = Client()


def reported(listener: Callable[..., None]) -> Callable[..., None]:
    """Shows the user what is wrong, for example that the service is unavailable.

    The handler of `app.error` comes too late: if a listener fails right after its ack(), Bolt may
    answer Slack that the request was not acknowledged.
    """

    @functools.wraps(listener)
    def handled(respond: Any, **arguments: Any) -> None:
        try:
            listener(respond=respond, **arguments)
        except Exception as error:
            logging.exception("A request of a user has failed.")
            respond(text=escaped(str(error)), replace_original=False)

    return handled


@app.command("/tasks")
@reported
def show(ack: Any, command: Any, respond: Any) -> None:
    """Shows the tasks to everyone in the channel."""
    ack()
    respond(**tasks_of(command["channel_id"]), response_type="in_channel")


@app.action("cancel")
@reported
def cancel(ack: Any, action: Any, body: Any, respond: Any) -> None:
    """Cancels the task of the clicked button, then shows the current tasks."""
    ack()
    channel, user = body["channel"]["id"], body["user"]
    workspace_id, task_id = action["value"].split()
    try:
        evershell.cancel(
            workspace_id, task_id, reason=f"{user['username']} ({user['id']}) in Slack"
        )
    except AgentUnreachableError as error:
        if not error.intent_recorded:
            raise
    respond(**tasks_of(channel), replace_original=True)


def tasks_of(channel: str) -> dict[str, Any]:
    """The message that shows what runs in the workspaces of a channel."""
    running = []
    for workspace_id in CHANNELS.get(channel, ()):
        workspace = evershell.get_workspace(workspace_id)
        if workspace.current_task_id:
            task = evershell.get_task(workspace_id, workspace.current_task_id)
            running.append(block_of(workspace.name or workspace.id, task))
    text = f"Running tasks: {len(running)}"
    return {"text": text, "blocks": [section(text), *running][:MAX_BLOCKS]}


def block_of(workspace: str, task: Task) -> dict[str, Any]:
    """What one task is doing, and the button that cancels it."""
    text = f"*{escaped(workspace)}* {escaped(task.description)}\n{task.status}"
    if task.cancel_requested_at is not None:
        return section(f"{text}, cancelled by {escaped(task.cancel_reason or 'someone')}")
    question = "The agent finishes its current iteration, and the task ends."
    button = {
        "type": "button",
        "action_id": "cancel",
        "style": "danger",
        "text": plain("Cancel"),
        "value": f"{task.workspace_id} {task.id}",
        "confirm": {
            "title": plain("Cancel this task?"),
            "text": plain(question),
            "confirm": plain("Cancel the task"),
            "deny": plain("Let it run"),
        },
    }
    return section(text) | {"accessory": button}


def section(text: str) -> dict[str, Any]:
    """A block with formatted text."""
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def plain(text: str) -> dict[str, Any]:
    """A text without formatting."""
    return {"type": "plain_text", "text": text}


def escaped(text: str) -> str:
    """The beginning of a text, without mentions and links."""
    shown = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
    return html.escape(shown, quote=False)


def receive(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Posts the end of a task. If Slack fails, answers 500: the service then repeats the event."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    headers = {name: environ.get(f"HTTP_{name.upper().replace('-', '_')}", "") for name in names}
    try:
        event = webhook.verify(body, headers)
    except WebhookVerificationError:
        start_response("401 Unauthorized", [])
        return []
    workspace_id, end = event["workspace_id"], event["task_completed"]
    because = f": {escaped(end['reason'])}" if end.get("reason") else ""
    text = f"Task {event['task_id']} in {workspace_id} has ended {end['status']}{because}"
    for channel, workspaces in CHANNELS.items():
        if workspace_id in workspaces:
            slack.chat_postMessage(channel=channel, text=text)
    start_response("204 No Content", [])
    return []


def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application. Slack calls /slack/events; the service calls /evershell."""
    is_webhook = environ["PATH_INFO"] == "/evershell"
    answer: Iterable[bytes] = (receive if is_webhook else slack_events)(environ, start_response)
    return answer


class Server(ThreadingMixIn, WSGIServer):
    """Serves each request in its own thread."""

    daemon_threads = True


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "3000"))
    make_server("127.0.0.1", port, serve, server_class=Server).serve_forever()
