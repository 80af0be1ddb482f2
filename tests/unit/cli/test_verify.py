"""The command `verify`: its verdicts on good and faulty services, and what it leaves behind."""

import asyncio
import errno
import json
import os
import shutil
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from evershell.cli import service, verify_load
from evershell.cli.main import main
from evershell.client import (
    Answer,
    AsyncClient,
    CancelOutcome,
    CancelResult,
    Page,
    PermissionDeniedError,
    SubmittedTask,
    Task,
    TaskStatus,
    UnavailableError,
    Workspace,
    WorkspaceNotFoundError,
    WorkspaceStatus,
)
from evershell.histories.judge import verdict
from evershell.histories.recorder import Recorder
from tests.unit.cli.fake_client import AT, ENVIRONMENT, error_of


class Listed:
    """Workspaces that both the synchronous and the asynchronous client can list."""

    def __init__(self, workspaces: list[Workspace]) -> None:
        self._workspaces = workspaces

    def __iter__(self) -> Iterator[Workspace]:
        return iter(self._workspaces)

    async def __aiter__(self) -> AsyncIterator[Workspace]:
        for each in self._workspaces:
            yield each


class Service:
    """A service in memory.

    Each call except ListWorkspaces and WatchEvents first calls `before`, which may make it fail.
    """

    def __init__(
        self,
        end: TaskStatus = TaskStatus.CANCELLED,
        before: Callable[[str], None] = lambda rpc: None,
    ) -> None:
        # How a cancelled task ends.
        self.end = end
        self.before = before
        self.workspaces: dict[str, Workspace] = {}
        self.tasks: dict[str, list[Task]] = {}
        self._on_answer: Callable[[Answer], None] = lambda answer: None

    def __call__(self, *arguments: Any, **options: Any) -> "Service":
        return self

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    async def __aenter__(self) -> "Service":
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    def with_options(self, on_answer: Any = None, **options: Any) -> "Service":
        other = object.__new__(Service)
        other.__dict__.update(self.__dict__ | ({"_on_answer": on_answer} if on_answer else {}))
        return other

    def _answer(self, rpc: str, workspace_id: str) -> None:
        self.before(rpc)
        if workspace_id and workspace_id not in self.workspaces:
            raise error_of(WorkspaceNotFoundError)
        self._on_answer(Answer(rpc, f"request_{rpc}"))

    def _last(self, workspace_id: str) -> Task | None:
        return self.tasks[workspace_id][0] if self.tasks[workspace_id] else None

    def list_workspaces(self, **options: Any) -> Listed:
        return Listed(list(self.workspaces.values()))

    async def create_workspace(self, name: str) -> Workspace:
        self._answer("CreateWorkspace", "")
        created = Workspace(f"ws_{name}", name=name, status=WorkspaceStatus.IDLE)
        self.workspaces[created.id], self.tasks[created.id] = created, []
        return created

    async def get_workspace(self, workspace_id: str) -> Workspace:
        self._answer("GetWorkspace", workspace_id)
        last, workspace = self._last(workspace_id), self.workspaces[workspace_id]
        if last is None or last.has_ended:
            return workspace
        return replace(workspace, status=WorkspaceStatus.BUSY, current_task_id=last.id)

    async def delete_workspace(self, workspace_id: str) -> Workspace:
        self._answer("DeleteWorkspace", workspace_id)
        return replace(self.workspaces.pop(workspace_id), status=WorkspaceStatus.DELETING)

    async def submit_task(self, workspace_id: str, description: str) -> SubmittedTask:
        self._answer("SubmitTask", workspace_id)
        tasks = self.tasks[workspace_id]
        task_id = f"task_{len(tasks)}_{workspace_id}"
        tasks.insert(0, Task(task_id, workspace_id, description, TaskStatus.RUNNING))
        return SubmittedTask(task_id, workspace_id, TaskStatus.DELIVERED)

    async def get_task(self, workspace_id: str, task_id: str) -> Task:
        self._answer("GetTask", workspace_id)
        return next(each for each in self.tasks[workspace_id] if each.id == task_id)

    def list_tasks(self, workspace_id: str, active: bool) -> "Service":
        self._answer("ListTasks", workspace_id)
        tasks = self.tasks[workspace_id]
        self._page = [each for each in tasks if not (active and each.has_ended)]
        return self

    async def pages(self) -> AsyncIterator[Page[Task]]:
        yield Page(tuple(self._page), None)

    async def cancel(
        self, workspace_id: str, task_id: str | None = None, **fields: Any
    ) -> CancelResult:
        self._answer("CancelTask", workspace_id)
        tasks, last = self.tasks[workspace_id], self._last(workspace_id)
        if task_id is not None and last is not None and (last.id != task_id or last.has_ended):
            return CancelResult(workspace_id, CancelOutcome.ALREADY_FINISHED, task_id=task_id)
        if last is None or last.has_ended:
            return CancelResult(workspace_id, CancelOutcome.NO_ACTIVE_TASK)
        if last.cancel_requested_at:
            return CancelResult(workspace_id, CancelOutcome.ALREADY_REQUESTED, task_id=last.id)
        ended = None if self.end is TaskStatus.RUNNING else AT
        tasks[0] = replace(last, status=self.end, cancel_requested_at=AT, completed_at=ended)
        return CancelResult(workspace_id, CancelOutcome.ACCEPTED, task_id=last.id, task=tasks[0])

    async def watch(self, workspace_id: str, **options: Any) -> AsyncGenerator[Any, None]:
        await asyncio.Event().wait()
        yield


def run(monkeypatch: pytest.MonkeyPatch, fake: Service, *arguments: str) -> Result:
    monkeypatch.setattr(service, "Client", fake)
    monkeypatch.setattr(service, "AsyncClient", cast("AsyncClient", fake))
    options = ("--for", "500ms", "--workspaces", "2", *arguments)
    return CliRunner().invoke(main, ["verify", *options], env=ENVIRONMENT)


def test_right_answers_hold_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, path = Service(), tmp_path / "history.jsonl"
    result = run(monkeypatch, fake, "--history", str(path))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("held: every answer of ")
    assert "end them by " in result.stderr
    assert (fake.workspaces, verdict(path)[1]) == ({}, [])
    again = run(monkeypatch, fake, "--history", str(path))
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)


def test_wrong_answers_are_shown_with_their_request_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Service(TaskStatus.COMPLETED)
    result = run(monkeypatch, fake)
    assert (result.exit_code, fake.workspaces) == (1, {})
    assert "broken: these answers cannot be right." in result.stdout
    assert "→ accepted, task_0_ws_verify-" in result.stdout
    assert "(request request_CancelTask)" in result.stdout
    path = Path(result.stderr.split()[-1])
    assert verdict(path)[1]
    shutil.rmtree(path.parent)


def test_a_script_gets_the_verdict_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--json", "--history", str(tmp_path / "history"))
    result = run(monkeypatch, Service(TaskStatus.COMPLETED), *options)
    as_json = json.loads(result.stdout)
    assert (as_json["verdict"], len(as_json["problems"])) == ("broken", 2)
    assert as_json["outcomes"]["accepted"] == 2


def test_a_cancelled_task_that_does_not_end_is_a_broken_promise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify_load, "END_SECONDS", 0.5)
    result = run(monkeypatch, Service(TaskStatus.RUNNING), "--history", str(tmp_path / "history"))
    assert result.exit_code == 1
    assert "is cancelled, but has not ended after" in result.stdout


@pytest.mark.parametrize("rpc", ["CancelTask", "GetWorkspace"])
def test_without_answers_the_verdict_is_not_known(
    monkeypatch: pytest.MonkeyPatch, rpc: str
) -> None:
    monkeypatch.setattr(verify_load, "END_SECONDS", 0.5)
    begun = set[str]()

    def unavailable(called: str) -> None:
        begun.add(called)
        if called == rpc and "SubmitTask" in begun and "DeleteWorkspace" not in begun:
            raise error_of(UnavailableError)

    result = run(monkeypatch, Service(before=unavailable))
    assert result.exit_code == 2
    assert "not known: the service did not show the end of the tasks of ws_" in result.stdout
    assert " unavailable" in result.stdout


def test_it_runs_on_an_organization_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Service()
    fake.workspaces["ws_other"] = Workspace("ws_other", name="nightly")
    fake.tasks["ws_other"] = []
    refused = run(monkeypatch, fake)
    assert (refused.exit_code, "ws_other (nightly)" in refused.stderr) == (2, True)
    beside = run(monkeypatch, fake, "--beside-others")
    assert (beside.exit_code, list(fake.workspaces)) == (0, ["ws_other"])


def test_without_the_rights_it_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(rpc: str) -> None:
        raise error_of(PermissionDeniedError)

    result = run(monkeypatch, Service(before=refuse))
    assert (result.exit_code, result.stderr.split(":")[0]) == (2, "permission_denied")


@pytest.fixture
def with_ctrl_c() -> Iterator[None]:
    """Handles SIGINT as in a terminal, even if the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("with_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    numbers = [number]

    def interrupt(rpc: str) -> None:
        if rpc == "GetTask" and numbers:
            os.kill(os.getpid(), numbers.pop())

    fake = Service(before=interrupt)
    result = run(monkeypatch, fake, "--for", "20s")
    assert (result.exit_code, fake.workspaces) == (130, {})
    # The verdict covers the calls that were made before the interruption.
    assert "GetTask" in result.stdout


def test_a_history_that_cannot_be_written_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill(self: Recorder, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def begin(rpc: str) -> None:
        if rpc == "SubmitTask":
            monkeypatch.setattr(Recorder, "answer", fill)

    fake = Service(before=begin)
    result = run(monkeypatch, fake)
    assert (result.exit_code, fake.workspaces) == (2, {})
    assert "No space left on device" in result.stderr


def test_it_says_what_it_could_not_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_load, "_REMOVAL_SECONDS", 0.5)

    def refuse(rpc: str) -> None:
        if rpc == "DeleteWorkspace":
            raise error_of(UnavailableError)

    fake = Service(before=refuse)
    result = run(monkeypatch, fake)
    assert result.exit_code == 0
    for each in fake.workspaces:
        assert f"Workspace {each} could not be deleted." in result.stderr
