"""Tools without a sandbox write to their pod's folder and to the controller's records.

This must not harm other pods.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from evershell.fleet.local.processes import ProcessId
from tests.support import faults
from tests.support.alive import is_alive
from tests.support.stack import Stack, Workspace, running, unique_seconds
from tests.support.waiting import eventually

# Pods have a sandbox by default. tests/unit/fleet has short tests of pods without one.
pytestmark = pytest.mark.soak
# Identifies the processes that tools start.
LEFT, HIDDEN, DETACHED = unique_seconds(), unique_seconds(), unique_seconds()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose pods have no sandbox."""
    with Stack(tmp_path_factory.mktemp("open") / "state", POD_ISOLATION="none").started() as own:
        yield own


@pytest.fixture
def other(stack: Stack) -> Workspace:
    """Creates another workspace with a file in its folder."""
    workspace = Workspace(stack)
    faults.await_terminal(workspace, workspace.submit("echo untouched > kept"))
    return workspace


def assert_unharmed(other: Workspace, agent: int) -> None:
    assert is_alive(agent) and other.stack.agent_pid(other.id) == agent
    assert (other.stack.files(other.id) / "kept").read_text() == "untouched\n"
    assert sorted(path.name for path in other.stack.files(other.id).iterdir()) == ["kept"]
    faults.assert_next_task_works(other)


@pytest.mark.parametrize("end", ["stop", "fail", "by the next controller"])
def test_a_tool_that_names_a_stranger_as_its_agent(
    stack: Stack, workspace: Workspace, stranger: "subprocess.Popen[bytes]", end: str
) -> None:
    named = ProcessId.of(stranger.pid)
    record = stack.state_dir / "fleet" / workspace.id / "agent"
    agent = stack.agent_pid(workspace.id)
    task_id = workspace.submit(
        f"echo {named.pid} > ../pid; echo -n {named.started_at} > ../created; echo -n 1 > ../epoch",
        # The command keeps the epoch and the run in the record.
        rf"sed -i 's/^\([0-9]* [^ ]*\).*/\1 {named.pid} {named.started_at}/' {record}",
    )
    assert faults.await_terminal(workspace, task_id)["status"] == "completed"
    if end == "stop":
        workspace.rest.post(f"{workspace.path}/stop")
        workspace.await_status("stopped")
    elif end == "fail":
        stack.kill(agent)
        faults.await_workspace(workspace, "failed")
    else:
        stack.replace_controllers()
        # The next controller rejects the record and treats the agent as lost. The agent is then
        # fenced, and ends itself.
        faults.await_workspace(workspace, "failed")
        eventually(lambda: not is_alive(agent))
    assert stranger.poll() is None
    assert not is_alive(agent) and stack.pod_processes(workspace.id) == []
    workspace.rest.post(f"{workspace.path}/resume")
    workspace.await_status("idle")
    faults.assert_next_task_works(workspace)
    assert stranger.poll() is None


def test_a_tool_that_links_its_pods_folder_to_another_ones(
    stack: Stack, workspace: Workspace, other: Workspace
) -> None:
    agents = [stack.agent_pid(each.id) for each in (workspace, other)]
    pods = stack.state_dir / "pods"
    task_id = workspace.submit(
        f"cd {pods}; mv {workspace.id} {workspace.id}.old; ln -s {other.id} {workspace.id}",
        "touch stray",
    )
    end = faults.await_terminal(workspace, task_id)
    assert (end["status"], "replaced" in end["reason"]) == ("failed", True), end
    faults.await_workspace(workspace, "failed")
    assert not is_alive(agents[0])
    assert_unharmed(other, agents[1])
    faults.resume(workspace)
    faults.assert_next_task_works(workspace)
    assert not (pods / workspace.id).is_symlink()
    assert_unharmed(other, agents[1])


def test_nothing_is_left_of_a_stack_whose_folders_a_tool_has_hidden(tmp_path: Path) -> None:
    """A stop of the stack ends an agent, and a process that has escaped from another agent.

    Before the stop, the controller that started both agents dies, and the process kills its agent.
    """
    own = Stack(tmp_path / "state", WORKERS="1", POD_ISOLATION="none")
    try:
        own.start()
        hiding, evading = Workspace(own), Workspace(own)
        agent = own.agent_pid(hiding.id)
        own.replace_controllers()
        # A workspace is created only once the next controller leads.
        Workspace(own)
        killing = (
            f"(cd /; env -i setsid /bin/sh -c 'kill -9 $1; exec sleep {LEFT}' x $PPID"
            " > /dev/null 2>&1 &)"
        )
        faults.await_terminal(evading, evading.submit(f"{killing}; sleep 600"))
        eventually(lambda: running(LEFT))
        hiding.submit(f"cd {own.state_dir}; mv fleet fleet.old; mv pods pods.old; sleep 600")
        eventually(lambda: (own.state_dir / "pods.old").exists())
        assert own.stop() == 0
        assert not is_alive(agent) and running(LEFT) == []
    finally:
        own.kill_if_running()


def test_the_work_of_a_detached_tool_is_unknown(stack: Stack, workspace: Workspace) -> None:
    """A tool leaves its session, its folder and its environment, and kills its agent.

    The controller that started the agent would become the tool's parent, and end it. A later
    controller may not find the tool, so it reports `unknown`.
    """
    stack.replace_controllers()
    # Once a new workspace is idle, the new controller leads.
    Workspace(stack)
    script = f"kill -9 $1; exec sleep {DETACHED}"
    detached = f"(cd /; env -i setsid /bin/sh -c '{script}' x $PPID > /dev/null 2>&1 &)"
    end = workspace.await_end(workspace.submit(f"{detached}; sleep {HIDDEN}"))
    assert (end["status"], end["work_stopped"]) == ("failed", "unknown")
    # The detached process may not have started `sleep` yet.
    for pid in eventually(lambda: running(DETACHED)):
        stack.kill(pid)


def test_a_tool_that_links_its_files_elsewhere(
    stack: Stack, workspace: Workspace, tmp_path: Path
) -> None:
    files = stack.files(workspace.id)
    task_id = workspace.submit(f"mv {files} {files}.old; ln -s {tmp_path} {files}", "touch stray")
    end = faults.await_terminal(workspace, task_id)
    assert (end["status"], "replaced" in end["reason"]) == ("failed", True), end
    faults.resume(workspace)
    task_id = workspace.submit("pwd -P; touch here")
    faults.await_terminal(workspace, task_id)
    (iteration,) = [
        entry
        for entry in workspace.log()
        if entry["type"] == "iteration_completed" and entry["task_id"] == task_id
    ]
    assert iteration["tool_call"]["result"]["output"] == f"{files.resolve()}\n"
    assert files.resolve() == files
    assert list(tmp_path.iterdir()) == []
