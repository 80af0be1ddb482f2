"""AGENT_COMMAND, the program of the agents. tests/stack/long/test_other_agents.py runs one."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from evershell.app.settings import Settings
from evershell.fleet.local.isolation import NoIsolation, Started
from evershell.fleet.local.local_pods import LocalPods
from tests.support.store.examples import workspace


class Refused(Exception):
    """Stands for the start of the program."""


class Recorded(NoIsolation):
    """Records the command instead of running it."""

    def start(self, *arguments: object, **_: object) -> Started:
        raise Refused(arguments[1])


def test_a_command_that_a_shell_cannot_read_is_refused() -> None:
    with pytest.raises(ValidationError, match="No closing quotation"):
        Settings(agent_command="node 'agent")


@pytest.mark.parametrize("command", [(), ("node", "an agent.mjs")])
async def test_the_command_is_that_of_the_settings(tmp_path: Path, command: tuple[str]) -> None:
    pods = LocalPods(
        tmp_path, lambda _: pytest.fail("no spec"), isolation=Recorded(), agent_command=command
    )
    with pytest.raises(Refused) as started:
        await pods.start(replace(workspace(), run_id="run_1"))
    expected = list(command) or ["-P", "-m", "evershell.agents"]
    assert started.value.args[0][-len(expected) :] == expected
