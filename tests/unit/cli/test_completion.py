"""What shells complete, and the command `completion`."""

from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, ShellComplete

from evershell.cli import profiles, service
from evershell.cli.main import main
from evershell.cli.profiles import Profile
from evershell.client import (
    Task,
    TaskStatus,
    Webhook,
    Workspace,
    WorkspaceStatus,
)
from tests.unit.cli.fake_client import FakeClient
from tests.unit.cli.services import HOME, READY

pytestmark = pytest.mark.usefixtures("environment")


def completed(typed: str) -> list[CompletionItem]:
    *words, last = typed.split(" ")
    return ShellComplete(main, {}, "evershell", "_EVERSHELL_COMPLETE").get_completions(words, last)


def test_commands_options_and_ids_are_completed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    READY.write(tmp_path)
    profiles.add("home", Profile(HOME, "sk_home"))

    def fake() -> FakeClient:
        client = FakeClient(
            list_workspaces=[
                iter(
                    [
                        Workspace("ws_1", status=WorkspaceStatus.IDLE, name="a\nb"),
                        Workspace("ws_2", status=WorkspaceStatus.IDLE, name="api"),
                        Workspace("ws_3", name="twin"),
                        Workspace("ws_4", name="twin"),
                        Workspace("ws_5", name="$(reboot)"),
                        Workspace("ws_6", name="--all"),
                        Workspace("x"),
                    ]
                )
            ],
            list_tasks=[iter([Task("task_1", "ws_1", status=TaskStatus.RUNNING)])],
        )
        client.webhooks = FakeClient(  # type: ignore[attr-defined] # an attribute of the client
            list=[(Webhook("wh_1", url="https://a.example"),)]
        )
        return client

    cases: dict[str, dict[str, str | None]] = {
        "can": {"cancel": "Cancel the task that runs in WORKSPACE."},
        "cancel --fo": {"--force-after": None},
        # The newline is escaped, because it would begin another item.
        "cancel ws_1": {"ws_1": r"idle a\nb"},
        # An id is offered instead of a name that several workspaces have, that a shell would not
        # take as one word, or that looks like an option.
        "cancel a": {"api": "ws_2 idle", "ws_1": r"idle a\nb"},
        "cancel tw": {"ws_3": "unspecified twin", "ws_4": "unspecified twin"},
        "cancel $": {"ws_5": "unspecified $(reboot)"},
        "cancel -- --a": {"ws_6": "unspecified --all"},
        "task ws_1 ": {"task_1": "running"},
        "cancel ws_1 --task ": {"task_1": "running"},
        "webhooks replay ": {"wh_1": "https://a.example"},
        "watch --profile h": {"home": None},
    }
    for typed, expected in cases.items():
        monkeypatch.setattr(service, "Client", fake())
        found = completed(typed)
        assert [item.value for item in found] == list(expected)
        for item in found:
            assert expected[item.value] in (None, item.help) or typed == "can"
    (tmp_path / "ready.json").unlink()
    assert completed("cancel ws") == []
