"""The unchanged bot of examples/slack, between the service and a fake of Slack."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.clients.long.slack.fake_slack import CHANNEL, SECRET, FakeSlack, fake_slack
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Gate, Stack, Workspace
from tests.support.waiting import eventually
from tests.unit.agents.long.adapters.frameworks import need

# The service repeats the event about the end of the task 5 to 6 s after the first failure.
LIMIT_SECONDS = 40.0


@contextmanager
def running_bot(
    workspace: Workspace, slack: FakeSlack, secret: str, port: int, log: Path
) -> Iterator[str]:
    """Runs the bot until the block ends. Yields its URL."""
    stack = workspace.stack
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, ROOT / "examples" / "slack" / "bot.py"],
            env={
                "CHANNELS": json.dumps({CHANNEL: [workspace.id]}),
                "SLACK_API_URL": f"{slack.url}/api/",
                "SLACK_BOT_TOKEN": "xoxb-1",
                "SLACK_SIGNING_SECRET": SECRET,
                "WEBHOOK_SECRET": secret,
                "EVERSHELL_URL": f"http://{stack.ready['grpc_addr']}",
                "EVERSHELL_API_KEY": stack.tokens["submit_observe"],
                "PORT": str(port),
            },
            stdout=output,
            stderr=output,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: _serves(url), LIMIT_SECONDS)
            yield url
        finally:
            process.terminate()
            process.wait(10)


def _serves(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 404
    except httpx.TransportError:
        return False


def test_the_bot_shows_and_cancels_a_task_and_posts_its_end(
    stack: Stack, workspace: Workspace, gate: Gate, tmp_path: Path
) -> None:
    need("slack_bolt")
    (port,) = free_ports(1)
    body = {"url": f"http://127.0.0.1:{port}/evershell", "event_types": ["task_completed"]}
    created = stack.rest().post("/v1/webhooks", body, 201)
    task_id = workspace.begin(f"{gate.command} # <!channel>")
    with (
        fake_slack(failures=1) as slack,
        running_bot(workspace, slack, created["secret"], port, tmp_path / "log") as bot,
    ):
        assert slack.command(bot, "the-secret-of-another-app").status_code == 401
        assert slack.command(bot).status_code == 200
        eventually(lambda: slack.responses, LIMIT_SECONDS)
        (block,) = slack.responses[0]["blocks"][1:]
        assert "# &lt;!channel&gt;\nrunning" in block["text"]["text"]
        button = block["accessory"]
        assert slack.press(bot, button).status_code == 200
        eventually(lambda: len(slack.responses) > 1, LIMIT_SECONDS)
        (block,) = slack.responses[1]["blocks"][1:]
        assert block["text"]["text"].endswith("running, cancelled by ada (U0000000001) in Slack")
        assert "accessory" not in block
        wrong = button | {"value": "ws_unknown task_unknown"}
        assert slack.press(bot, wrong).status_code == 200
        eventually(lambda: len(slack.responses) > 2, LIMIT_SECONDS)
        assert slack.responses[2]["text"].startswith("workspace_not_found: ")
        # The bot acknowledges this request, and then fails to handle it.
        assert slack.press(bot, button | {"value": "broken"}).status_code == 200
        forged = {"workspace_id": workspace.id, "task_id": task_id, "task_completed": {}}
        answer = httpx.post(f"{bot}/evershell", json=forged, trust_env=False)
        assert (answer.status_code, slack.posts) == (401, [])
        gate.open()
        eventually(lambda: slack.posts, LIMIT_SECONDS)
    # The first post failed, so the service has repeated the event about the end of the task.
    (post,) = slack.posts
    assert slack.failures == 0
    assert post["channel"] == CHANNEL
    assert post["text"].startswith(f"Task {task_id} in {workspace.id} has ended cancelled")
    assert workspace.task(task_id)["cancel_reason"] == "ada (U0000000001) in Slack"
    stack.rest().call("DELETE", f"/v1/webhooks/{created['webhook']['id']}")
