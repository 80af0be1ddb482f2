"""Runs the receiver of docs/webhooks.md, unchanged: it posts ends of tasks to a chat channel."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.documents import blocks
from tests.support.ports import free_ports
from tests.support.receivers import Receivers, accept, refuse
from tests.support.stack import ROOT, Stack, Workspace
from tests.support.waiting import eventually

_LIMIT_SECONDS = 30.0


def test_the_channel_gets_an_end_although_it_was_down(
    stack: Stack, workspace: Workspace, tmp_path: Path
) -> None:
    (program,) = (
        block.text
        for block in blocks((ROOT / "docs" / "webhooks.md").read_text())
        if "standardwebhooks" in block.text and block.language == "python"
    )
    url = f"http://127.0.0.1:{(port := free_ports(1)[0])}/"
    body = {"url": url, "event_types": ["task_completed"]}
    created = stack.rest().post("/v1/webhooks", body, 201)
    with Receivers().running() as receivers:
        channel = receivers.add(refuse("503 Service Unavailable"))
        environment = {
            "CHANNEL_URL": f"http://{channel.address}/",
            "WEBHOOK_SECRET": created["secret"],
            "PORT": str(port),
        }
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", program], env=environment, stdout=log, stderr=log
            )
        try:
            task_id = workspace.submit("echo hello")
            eventually(lambda: channel.requests, _LIMIT_SECONDS)
            # This request is not signed, so it must not reach the channel.
            forged = {"task_id": task_id, "task_completed": {"status": "cancelled"}}
            with pytest.raises(httpx.HTTPError):
                httpx.post(url, json=forged).raise_for_status()
            channel.behaviour = accept
            eventually(lambda: channel.requests[-1].accepted, _LIMIT_SECONDS)
        finally:
            process.terminate()
            process.wait(10)
        texts = {json.loads(each.body)["text"] for each in channel.requests}
        assert texts == {f"Task {task_id} has ended: completed"}
    path = f"/v1/webhooks/{created['webhook']['id']}"
    assert stack.rest().call("DELETE", path).is_success
