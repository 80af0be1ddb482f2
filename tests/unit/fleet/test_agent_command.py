"""AGENT_COMMAND, the program of the agents. tests/stack/long/test_other_agents.py runs a sample."""

import importlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from evershell.app.settings import Settings
from evershell.fleet.local.isolation import NoIsolation, Started
from evershell.fleet.local.local_pods import LocalPods
from tests.support.store.examples import workspace

# Both the module and the command in it are named `up`.
command_up = importlib.import_module("evershell.commands.up")


class Refused(Exception):
    """Raised instead of starting the program."""


class Recorded(NoIsolation):
    """Raises Refused with the command instead of running it."""

    def start(self, *arguments: object, **_: object) -> Started:
        raise Refused(arguments[1])


def test_a_command_that_a_shell_cannot_read_is_refused() -> None:
    with pytest.raises(ValidationError, match="No closing quotation"):
        Settings(agent_command="node 'agent")


def test_a_file_that_pods_would_not_find_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_agent.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError, match=f"Name it {tmp_path}/my_agent.py"):
        Settings(agent_command="python3 my_agent.py")
    Settings(agent_command=f"python3 {tmp_path}/my_agent.py")


@pytest.mark.parametrize(
    ("agent", "expected"),
    [("my_agent.py:agent", "{}/my_agent.py:agent"), ("package.module:agent", None)],
)
def test_up_takes_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str, expected: str | None
) -> None:
    (tmp_path / "my_agent.py").touch()
    monkeypatch.chdir(tmp_path)
    started: list[tuple[Settings, Path | None]] = []

    async def run(settings: Settings, agent_file: Path | None) -> None:
        started.append((settings, agent_file))

    monkeypatch.setattr(command_up, "run", run)
    done = CliRunner().invoke(command_up.up, ["--agent", agent], env={"STATE_DIR": str(tmp_path)})
    assert done.exit_code == 0, done.output
    (settings, agent_file) = started[0]
    assert agent_file == (tmp_path / "my_agent.py" if expected else None)
    *program, name = shlex.split(settings.agent_command)
    assert program == [sys.executable, "-P", "-m", "evershell.agents"]
    assert name == (expected or agent).format(tmp_path)


@pytest.mark.parametrize("agent", ["my_agent.py", "absent.py:agent"])
def test_up_refuses_what_is_no_agent(tmp_path: Path, agent: str) -> None:
    done = CliRunner().invoke(command_up.up, ["--agent", agent], env={"STATE_DIR": str(tmp_path)})
    assert done.exit_code == 2
    assert "Invalid value for --agent: " in done.output


@pytest.mark.parametrize("command", [(), ("node", "an agent.mjs")])
async def test_the_command_is_that_of_the_settings(tmp_path: Path, command: tuple[str]) -> None:
    pods = LocalPods(
        tmp_path, lambda _: pytest.fail("no spec"), isolation=Recorded(), agent_command=command
    )
    with pytest.raises(Refused) as started:
        await pods.start(replace(workspace(), run_id="run_1"))
    expected = list(command) or ["-P", "-m", "evershell.agents"]
    assert started.value.args[0][-len(expected) :] == expected
