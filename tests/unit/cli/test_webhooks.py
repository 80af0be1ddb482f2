"""The `webhooks` commands: which calls they make, and what they print."""

import json
from typing import Any

import pytest
from click.testing import Result

from evershell.client import (
    CreatedWebhook,
    DeliveryStatus,
    EventType,
    ReplayResult,
    RotatedSecret,
    Webhook,
    WebhookDelivery,
)
from tests.unit.cli.fake_client import AT, FakeClient, run

WEBHOOK = Webhook(
    "wh_1",
    url="https://a.example/b",
    event_types=(EventType.TASK_STARTED, EventType.TASK_COMPLETED),
    created_at=AT,
    description="chat \x1b[2J",
)
SECRET = "whsec_c2VjcmV0"


def run_webhooks(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, **answers: list[Any]
) -> tuple[Result, list[tuple[Any, ...]]]:
    """Runs a command. Returns the result, and the calls that the command made."""
    fake = FakeClient()
    fake.webhooks = FakeClient(**answers)  # type: ignore[attr-defined] # an attribute of the client
    result = run(monkeypatch, fake, "webhooks", *arguments)
    return result, fake.webhooks.calls


def test_the_secret_alone_goes_to_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    created = CreatedWebhook(WEBHOOK, SECRET)
    result, calls = run_webhooks(monkeypatch, "add", "https://a.example/b", create=[created])
    assert (result.exit_code, result.stdout) == (0, f"{SECRET}\n")
    assert "wh_1" in result.stderr
    # By default, a webhook receives the ends of tasks.
    fields = {"description": "", "idempotency_key": None}
    assert calls == [("create", "https://a.example/b", ("task_completed",), fields)]

    rotated = RotatedSecret(WEBHOOK, SECRET)
    result, calls = run_webhooks(monkeypatch, "rotate", "wh_1", rotate=[rotated])
    assert (result.stdout, calls) == (f"{SECRET}\n", [("rotate", "wh_1", {})])
    assert SECRET not in repr(created) + repr(rotated)


def test_a_repeat_has_no_secret_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    created = CreatedWebhook(WEBHOOK, "")
    result, _ = run_webhooks(monkeypatch, "add", "https://a.example/b", create=[created])
    # A script would take the empty output for the secret, so the command fails.
    assert (result.exit_code, result.stdout) == (1, "")
    assert "evershell webhooks rotate wh_1" in result.stderr


def test_a_type_of_events_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    result, calls = run_webhooks(monkeypatch, "add", "https://a.example", "--event", "task_ended")
    assert (result.exit_code, calls) == (2, [])
    assert "task_ended" in result.stderr


def test_the_list_has_a_line_for_each_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    disabled = Webhook("wh_2", url="https://c.example", disabled_at=AT)
    result, _ = run_webhooks(monkeypatch, "list", list=[(WEBHOOK, disabled)])
    lines = result.stdout.splitlines()
    assert "task_started,task_completed" in lines[1]
    assert ("enabled" in lines[1], "disabled" in lines[2]) == (True, True)
    assert r"\x1b[2J" in lines[1]
    as_json, _ = run_webhooks(monkeypatch, "list", "--json", list=[(WEBHOOK,)])
    (shown,) = json.loads(as_json.stdout)["webhooks"]
    assert shown["event_types"] == ["task_started", "task_completed"]


def test_a_replay_goes_on_until_nothing_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ReplayResult(1_000, 2), ReplayResult(2, 0)]
    result, calls = run_webhooks(monkeypatch, "replay", "wh_1", replay=answers)
    assert (result.exit_code, len(calls)) == (0, 2)
    assert "1002 failed deliveries are sent again; 0 remain." in result.stdout
    # Another caller is replaying the deliveries that remain.
    result, calls = run_webhooks(
        monkeypatch, "replay", "wh_1", "--task", "task_1", replay=[ReplayResult(0, 5)]
    )
    assert "5 remain" in result.stdout
    assert calls == [("replay", "wh_1", {"task_id": "task_1"})]


def test_the_deliveries_of_a_task_say_why_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = WebhookDelivery(
        "wh_1",
        status=DeliveryStatus.PENDING,
        delivered_seq=2,
        last_seq=5,
        attempts=3,
        last_error="the receiver answered 503",
        next_attempt_at=AT,
    )
    result, calls = run_webhooks(
        monkeypatch, "deliveries", "ws_1", "task_1", deliveries=[(waiting,)]
    )
    assert calls == [("deliveries", "ws_1", "task_1", {})]
    for text in ("pending", "2 of 5", "2023-11-14T22:13:20Z", "the receiver answered 503"):
        assert text in result.stdout


def test_a_webhook_that_is_removed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result, calls = run_webhooks(monkeypatch, "remove", "wh_1", delete=[WEBHOOK])
    assert (result.stdout, calls) == ("webhook wh_1: deleted\n", [("delete", "wh_1", {})])
