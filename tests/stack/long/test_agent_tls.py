"""A stack with AGENT_TLS: a task is cancelled over TLS, and programs are restarted.

The stack listens on all addresses (LISTEN_HOST). Other machines can reach its edge and nothing
else.
"""

from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.support.programs import run
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

RESTART_SECONDS = 80.0
ANY = "0.0.0.0"  # noqa: S104


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    state_dir = tmp_path_factory.mktemp("tls") / "state"
    with Stack(state_dir, AGENT_TLS="on", LISTEN_HOST=ANY).started() as own:
        yield own


@pytest.fixture
def workspace(stack: Stack) -> Workspace:
    return Workspace(stack)


def test_only_the_edge_listens_on_all_addresses(stack: Stack, workspace: Workspace) -> None:
    assert workspace.agent_address is not None
    # gRPC listens on an IPv6 socket for IPv4 connections too.
    found: set[tuple[bool, str]] = set()
    for process in stack.processes():
        # The process may end in the meantime.
        with suppress(psutil.NoSuchProcess):
            found.update(
                (process.name() == "envoy", connection.laddr.ip.removeprefix("::ffff:"))
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            )
    assert found == {(True, ANY), (False, "127.0.0.1")}
    assert stack.ready["rest_url"].startswith("http://127.0.0.1:")


def test_agents_and_restarted_programs_accept_each_other(workspace: Workspace) -> None:
    """After the restart, each program has a new certificate.

    The agent accepts a new certificate because the same authority signed it.
    """
    stack, gate = workspace.stack, Gate(workspace)
    task_id = workspace.begin(gate.command, gate.command, "echo never")
    assert run("restart", stack.state_dir).returncode == 0
    eventually(lambda: "rolling_restart_completed" in stack.output.read_text(), RESTART_SECONDS)
    gate.open()
    workspace.await_event("iteration_completed", task_id)
    # Waits for the second iteration: an earlier cancellation would prevent it.
    workspace.await_phase(task_id, "tool_call")
    assert workspace.cancel()["outcome"] == "accepted"
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"]) == ("cancelled", 2)
