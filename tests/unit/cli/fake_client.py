"""A fake client, with which tests run commands."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from evershell.cli import service
from evershell.cli.main import main
from evershell.client import CallError, CancelOutcome, CancelResult, Client, Task, TaskStatus

AT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
ENVIRONMENT = {
    "EVERSHELL_URL": "http://127.0.0.1:8081",
    "EVERSHELL_API_KEY": "sk_secret",
    "EVERSHELL_CONFIG": "/nowhere/profiles.json",
    "EVERSHELL_PROFILE": "",
    "STATE_DIR": "/nowhere",
}


class FakeClient:
    """Answers each call with the next answer of its method, and records the arguments."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []
        self.opened: tuple[Any, ...] = ()

    def __call__(self, url: str, credential: str, **options: Any) -> Client:
        self.opened = (url, credential)
        return cast("Client", self)

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def with_options(self, **options: Any) -> "FakeClient":
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self.answers:
            raise AttributeError(name)

        def method(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, *arguments, named))
            answer = self.answers[name].pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return method


def run(
    monkeypatch: pytest.MonkeyPatch, fake: FakeClient, *arguments: str, **options: Any
) -> Result:
    """Runs a command with the fake client."""
    monkeypatch.setattr(service, "Client", fake)
    result = CliRunner().invoke(main, arguments, env=ENVIRONMENT, **options)
    assert "sk_secret" not in result.output
    return result


def task(status: TaskStatus, **fields: Any) -> Task:
    return Task("task_1", "ws_1", status=status, **fields)


def cancelled(
    outcome: CancelOutcome, status: TaskStatus = TaskStatus.RUNNING, **fields: Any
) -> CancelResult:
    return CancelResult(
        "ws_1",
        outcome,
        task_id="task_1",
        requested_at=AT,
        requested_by="key_1",
        reason="it\x1b[2J has gone wrong",
        task=task(status, **fields),
        request_id="request_1",
    )


def error_of(kind: type[CallError], **details: Any) -> CallError:
    return kind("What happened.", "request_1", details)
