"""A tool attacks everything outside its sandbox, on a running stack."""

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import psycopg
import pytest

from evershell.stack import postgres
from tests.faults.long.attacks.sandbox_attacks import ATTACKS, THROUGH, Attack, Target
from tests.support import faults
from tests.support.alive import is_alive
from tests.support.constants import with_constants
from tests.support.sandbox import skip_without_sandbox
from tests.support.stack import Gate, Stack, Workspace, running, unique_seconds
from tests.support.waiting import eventually

LIMITS = {"evershell.app.pod_backends": {"TOOL_PROCESSES": 64, "_TOOL_FILE_MB": 64}}
ABSTRACT = f"evershell-attacked-{os.getpid()}"
# The time limit of all attacks together. They take about 40 s, and longer on a busy machine.
RUN_SECONDS = 240.0
# Identifies the process that a tool tries to leave behind.
LEFT = unique_seconds()


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose tools have small limits."""
    skip_without_sandbox()
    folder = tmp_path_factory.mktemp("attacked")
    with Stack(
        folder / "state",
        POD_ISOLATION="sandbox",
        TOOL_TIMEOUT_SECONDS="20",
        TOOL_MEMORY_MB="128",
        **with_constants(folder, LIMITS),
    ).started() as own:
        yield own


@pytest.fixture(scope="module")
def attacker(limited: Stack) -> Workspace:
    return Workspace(limited)


@pytest.fixture(scope="module")
def target(limited: Stack, attacker: Workspace) -> Iterator[Target]:
    """The targets of the attacks, such as another workspace's secret. Checks that they exist."""
    other = Workspace(limited)
    faults.await_terminal(other, other.submit("echo private > secret"))
    database = psycopg.conninfo.conninfo_to_dict(limited.ready["database_url"])["host"]
    sockets = postgres.places(limited.state_dir).socket_dir
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{ABSTRACT}")
        abstract.listen()
        found = Target(
            state=str(limited.state_dir),
            other=other.id,
            database_socket=f"{database}/.s.PGSQL.5432",
            admin_socket=f"{sockets}/envoy.sock",
            abstract_socket=ABSTRACT,
            agent_pid=limited.agent_pid(attacker.id),
            agent_port=_agent_port(attacker),
            other_agent_port=_agent_port(other),
            server_port=int(limited.ready["server_addr"].rpartition(":")[2]),
        )
        assert is_alive(found.agent_pid)
        for path in (found.database_socket, found.admin_socket):
            with socket.socket(socket.AF_UNIX) as reached:
                reached.connect(path)
        for name in ("control-plane.jwk", f"pods/{other.id}/files/secret"):
            assert (limited.state_dir / name).read_bytes()
        yield found


@pytest.fixture(scope="module")
def results(attacker: Workspace, target: Target) -> dict[str, dict[str, Any]]:
    """The results of all attacks, by name. Each attack is an iteration of the same task."""
    facts = {name: str(value) for name, value in asdict(target).items()}
    commands = [
        re.sub(rf"\{{({'|'.join(facts)})\}}", lambda found: facts[found[1]], attack.command)
        for attack in ATTACKS
    ]
    results = run(attacker, *commands)
    # The attacks have not ended the agent.
    assert attacker.stack.agent_pid(attacker.id) == target.agent_pid
    return dict(zip((attack.name for attack in ATTACKS), results, strict=True))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused(results: dict[str, dict[str, Any]], attack: Attack) -> None:
    result = results[attack.name]
    assert THROUGH not in result["output"]
    assert result["status"] == "exited"
    assert re.search(attack.refusal, result["output"]), result


def test_memory_that_processes_share_counts_once(attacker: Workspace) -> None:
    """Eight processes share 60 MiB, which would exceed the limit if it counted for each of them."""
    command = "perl -e 'syscall(9, 0, 60 << 20, 3, 0x8022, -1, 0); fork for 1..3; sleep 2'"
    (result,) = run(attacker, f"{command}; echo well")
    assert result["output"] == "well\n"


def test_a_tool_leaves_nothing_behind_that_runs(attacker: Workspace) -> None:
    stray = f"(cd /; env -i setsid /bin/sh -c 'trap \"\" TERM; sleep {LEFT}' > /dev/null 2>&1 &)"
    gate = Gate(attacker)
    task_id = attacker.submit(f"{stray}; {gate.command}")
    eventually(lambda: running(LEFT))
    gate.open()
    assert faults.await_terminal(attacker, task_id)["status"] == "completed"
    assert running(LEFT) == []


def run(workspace: Workspace, *commands: str) -> list[dict[str, Any]]:
    """Runs tool calls and returns their results."""
    task_id = workspace.submit(*commands, max_iterations=len(commands) + 1)
    assert faults.await_terminal(workspace, task_id, RUN_SECONDS)["status"] == "completed"
    return [
        entry["tool_call"]["result"]
        for entry in workspace.log()
        if entry["type"] == "iteration_completed" and entry["task_id"] == task_id
    ]


def _agent_port(workspace: Workspace) -> int:
    return int(str(workspace.agent_address).rpartition(":")[2])
