"""Each line in the logs of a whole stack is JSON with a timestamp, except in PostgreSQL's log."""

import json
from pathlib import Path

import pytest

from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# PostgreSQL's log has its own format.
NOT_JSON = {"postgres"}


def files(stack: Stack) -> list[Path]:
    logs = [
        path
        for path in (stack.state_dir / "logs").iterdir()
        if path.is_file() and path.name.split(".")[0] not in NOT_JSON
    ]
    return [*logs, *(stack.state_dir / "fleet").glob("*/log")]


def test_every_line_is_json_and_has_a_timestamp(stack: Stack, workspace: Workspace) -> None:
    workspace.await_end(workspace.submit("true"))
    # Envoy writes its log only at intervals.
    eventually(
        lambda: (
            {"envoy", "fleet", "log"}
            <= {path.name.split(".")[0].split("-")[0] for path in files(stack)}
        )
    )
    for path in files(stack):
        # The program may be writing the last line.
        for line in path.read_text().split("\n")[:-1]:
            try:
                fields = json.loads(line)
            except ValueError:
                pytest.fail(f"{path.name} has {line[:300]!r}")
            assert fields["timestamp"], (path.name, line[:300])
