"""The stack itself: how it starts, stops and comes back."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.stack import postgres
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Gate, Stack, Workspace, processes_of
from tests.support.waiting import eventually


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that the test starts and stops."""
    own = Stack(tmp_path / "state")
    yield own
    # A test that failed half way leaves nothing behind.
    own.kill_if_running()


def test_ctrl_c_leaves_no_process_and_a_second_run_finds_its_workspaces(own_stack: Stack) -> None:
    own_stack.start()
    demo = own_stack.ready["demo"]
    workspace = Workspace(own_stack)
    finished = workspace.submit("echo before the restart")
    workspace.await_end(finished)
    gate = Gate(workspace)
    cancelled = workspace.submit(gate.command, "echo never")
    workspace.await_phase(cancelled, "tool_call")
    workspace.cancel(reason="before the restart")
    running = Workspace(own_stack)
    lost = running.submit(Gate(running).command)
    running.await_phase(lost, "tool_call")
    agents = [own_stack.agent_pid(workspace.id), own_stack.agent_pid(running.id)]
    assert processes_of(own_stack.state_dir)

    assert own_stack.stop(signal.SIGINT) == 0

    assert not (own_stack.state_dir / "ready.json").exists()
    assert processes_of(own_stack.state_dir) == []
    assert not any(own_stack.is_alive(pid) for pid in agents)

    own_stack.start()
    try:
        assert own_stack.ready["demo"]["workspace_id"] == demo["workspace_id"]
        assert own_stack.tokens["full_access"] == demo["tokens"]["full_access"]
        workspace.rest = running.rest = own_stack.rest()
        for each in (workspace, running):
            each.await_event("workspace_resumed")
            assert each.await_status("idle")["epoch"] == "2"
        assert workspace.task(finished)["status"] == "completed"
        # A task that ran has ended: cancelled if that was asked for, else failed.
        assert workspace.await_end(cancelled)["status"] == "cancelled"
        end = running.await_end(lost)
        assert (end["status"], end["reason"]) == ("failed", "the host was restarted")
        assert workspace.await_end(workspace.submit("ls"))["status"] == "completed"
        assert [entry["seq"] for entry in workspace.log()] == list(
            range(1, len(workspace.log()) + 1)
        )
    finally:
        assert own_stack.stop() == 0
    assert processes_of(own_stack.state_dir) == []


def test_ready_json_and_credentials_are_private(stack: Stack) -> None:
    for name in ("ready.json", "demo.env", "demo.json", "control-plane.jwk"):
        assert stat.S_IMODE((stack.state_dir / name).stat().st_mode) == 0o600, name
    assert set(stack.tokens) == {
        "full_access",
        "submit_observe",
        "read_only",
        "owner",
        "member",
        "expired",
        "other_org",
    }
    assert not any(token in stack.output.read_text() for token in stack.tokens.values())


def test_the_printed_calls_work_in_their_order(stack: Stack) -> None:
    calls = stack.output.read_text().partition("In another terminal:")[2]
    environment = {name: value for name, value in os.environ.items() if name != "TOKEN"}
    # The last of them watches until it is ended.
    shell = subprocess.Popen(
        ["/usr/bin/env", "bash", "-ec", calls],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    timer = threading.Timer(30, os.killpg, (shell.pid, signal.SIGKILL))
    timer.start()
    printed = ""
    try:
        assert shell.stdout is not None
        # Each answer ends its line.
        task_id = json.loads(shell.stdout.readline())["task_id"]
        assert json.loads(shell.stdout.readline())["outcome"] == "accepted"
        for line in shell.stdout:
            printed += line
            if '"task_completed"' in line and task_id in line:
                break
    finally:
        timer.cancel()
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    assert '"outcome": "already_requested"' in printed
    assert '"forced":true' in printed.splitlines()[-1]


def test_two_stacks_run_side_by_side(stack: Stack, own_stack: Stack) -> None:
    own_stack.start()
    try:
        assert (
            own_stack.rest().get(f"/v1/workspaces/{own_stack.ready['demo']['workspace_id']}")[
                "status"
            ]
            == "idle"
        )
        assert (
            stack.rest().get(f"/v1/workspaces/{stack.ready['demo']['workspace_id']}")["status"]
            == "idle"
        )
    finally:
        assert own_stack.stop() == 0


def test_a_second_run_on_the_same_state_or_port_says_what_to_do(
    stack: Stack, tmp_path: Path
) -> None:
    assert "Another run uses" in Stack(stack.state_dir).refuses_to_start()
    on_the_same_port = Stack(
        tmp_path / "state", REST_PORT=stack.ready["rest_url"].rpartition(":")[2]
    )
    assert "Set REST_PORT to another one" in on_the_same_port.refuses_to_start()
    assert (
        stack.rest().get(f"/v1/workspaces/{stack.ready['demo']['workspace_id']}")["status"]
        == "idle"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@127.0.0.1:1/none",
        "user:secret",
        "mysql://user:secret@127.0.0.1/none",
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_a_line_without_its_password(
    tmp_path: Path, url: str
) -> None:
    said = Stack(tmp_path / "state", DATABASE_URL=url).refuses_to_start()
    assert "DATABASE_URL" in said
    assert "Traceback" not in said
    assert "secret" not in said


def test_a_database_with_foreign_tables_is_refused(empty_database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE customers (id int)")
    said = Stack(tmp_path / "state", DATABASE_URL=empty_database_url).refuses_to_start()
    assert "customers" in said
    assert "Create a database for this service" in said
    assert "Starting PostgreSQL" not in said
    assert "Traceback" not in said


def test_another_database_under_the_same_state(tmp_path: Path, empty_database_url: str) -> None:
    for environment in ({}, {"DATABASE_URL": empty_database_url}):
        own = Stack(tmp_path / "state", **environment)
        try:
            own.start()
            demo = own.ready["demo"]["workspace_id"]
            # The same workspace in the same epoch, as in a database that was restored from a dump.
            found = own.rest().get(f"/v1/workspaces/{demo}")
            assert (found["status"], found["epoch"]) == ("idle", "1")
            assert own.stop() == 0
        finally:
            own.kill_if_running()


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


def test_what_dies_of_the_control_plane_is_started_again(own_stack: Stack) -> None:
    own_stack.start()
    try:
        workspace = Workspace(own_stack)
        pid = own_stack.agent_pid(workspace.id)
        for program in ("serve", "fleet"):
            killed = own_stack.pids(program)
            for each in killed:
                own_stack.kill(each)
            eventually(lambda: len(set(own_stack.pids(program)) - set(killed)) == len(killed))
        # Agents live through it, and the new controller watches over them.
        eventually(lambda: workspace.rest.call("GET", workspace.path).status_code == 200)
        assert workspace.await_end(workspace.submit("true"))["status"] == "completed"
        assert own_stack.agent_pid(workspace.id) == pid
        own_stack.kill(pid)
        workspace.await_status("failed")
    finally:
        assert own_stack.stop() == 0
    assert processes_of(own_stack.state_dir) == []


@pytest.fixture
def database_over_tcp(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL that is not the stack's own, and the URL at which it listens."""
    places = postgres.places(tmp_path / "database")
    postgres.initialise(places.data_dir)
    with (places.data_dir / "pg_hba.conf").open("w") as access:
        access.write("host all all 127.0.0.1/32 trust\n")
    (port,) = free_ports(1)
    command = [
        *postgres.command(places.data_dir, places.socket_dir),
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"port={port}",
    ]
    with (tmp_path / "database.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"postgresql://{postgres.USER}@127.0.0.1:{port}/{postgres.DATABASE}"
    try:
        asyncio.run(postgres.wait_ready(url, 20))
        yield url
    finally:
        server.send_signal(postgres.STOP_SIGNAL)
        server.wait(20)


def test_a_database_of_ones_own_over_tcp(database_over_tcp: str, tmp_path: Path) -> None:
    own = Stack(tmp_path / "state", DATABASE_URL=database_over_tcp, WORKERS="1")
    try:
        own.start()
        assert own.ready["database_url"] == database_over_tcp
        assert "Starting PostgreSQL" not in own.output.read_text()
        assert not (own.state_dir / "pg" / "data").exists()
        workspace = Workspace(own)
        assert workspace.await_end(workspace.submit("true"))["status"] == "completed"
        assert own.stop() == 0
    finally:
        own.kill_if_running()
