"""What only pods on this machine do, with a small program in the agent's place.

tests/contracts has what they promise to the controller.
"""

import errno
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from server.core.runtime import AgentIdentity
from server.core.workspace import Workspace
from server.fleet import pod_files, processes
from server.fleet.local_pods import LocalPods
from server.fleet.processes import Pod
from tests.fleet.small_agent import given, spec_for


async def test_an_agent_is_given_its_secrets_on_standard_input_alone(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    told = await given(tmp_path, at)
    files = str(tmp_path / "pods" / at.id / "files")
    assert told["argv"] == ["-P", "-m", "server", "agent"]
    assert json.loads(str(told["stdin"])) == asdict(spec_for(AgentIdentity(at.id, 3)))
    environment = told["environment"]
    assert isinstance(environment, dict)
    assert set(environment) <= {
        "PATH",
        "LANG",
        "EVERSHELL_WORKSPACE_ID",
        "EVERSHELL_EPOCH",
        "EVERSHELL_STATE_DIR",
        "LC_CTYPE",
    }
    assert told["cwd"] == files
    assert "secret" not in str(environment)


async def test_the_process_of_the_agent_is_on_disk(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    pid = int((tmp_path / "pods" / at.id / "pid").read_text())
    assert [process.pid for process in processes.find(Pod(at.id))] == [pid]


async def test_the_files_of_a_pod_that_has_ended_stay(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    assert await pods.end(at, 5) is True
    assert not (tmp_path / "pods" / at.id / "pid").exists()
    assert (tmp_path / "pods" / at.id / "files" / "given.json").exists()


async def test_the_end_of_a_pod_is_noted_on_a_full_disk(
    pods: LocalPods, at: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pods.start(at)
    await given(tmp_path, at)

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pod_files, "write", write)
    assert await pods.end(at, 0) is True
    assert await LocalPods(tmp_path, spec_for).end(at, 0) is True
    with pytest.raises(OSError, match="No space left"):
        await pods.start(at)


@pytest.mark.parametrize("what", ["files", "."])
async def test_a_pod_whose_folder_was_deleted_starts_again(
    pods: LocalPods, at: Workspace, tmp_path: Path, what: str
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    shutil.rmtree(tmp_path / "pods" / at.id / what)
    assert not pods.has_files(at.id) and not pods.is_alive(at)
    assert await pods.end(at, 5) is True
    await pods.start(at)
    assert pods.is_alive(at)


async def test_a_pod_that_was_just_started_is_alive_and_can_be_ended(
    pods: LocalPods, at: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is just being started shows no environment for a moment: it must not be taken
    for another's.
    """
    await pods.start(at)
    with monkeypatch.context() as loading:
        loading.setattr(psutil.Process, "environ", lambda process: {})
        assert pods.is_alive(at)
        assert await pods.end(at, grace_seconds=0) is True
        assert not pods.is_alive(at)
    assert processes.find(Pod(at.id)) == []
