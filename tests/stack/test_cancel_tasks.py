"""CancelTasks through the edge, over REST and gRPC, with the tasks of the other organization."""

from typing import Any

import pytest

from evershell.client import Client, TaskFilter
from tests.support.other_org import OTHER_ORG, begin
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

PATH = "/v1/tasks/cancel"


def counts(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    return (
        answer["matched"],
        answer["accepted"],
        answer["already_requested"],
        answer["remaining"],
    )


def test_a_batch_keeps_the_promises_of_a_cancellation(
    stack: Stack, others: list[Workspace], workspace: Workspace
) -> None:
    begun = begin(others, metadata={"team": "a"})
    ours, [(our_gate, our_task)] = workspace, begin([workspace], metadata={"team": "a"})
    rest = others[0].rest
    wanted = {"filter": {"metadata": {"team": "a"}}, "reason": "gone wrong"}
    assert counts(rest.post(PATH, wanted | {"dry_run": True})) == (2, 0, 0, 2)
    answer = rest.post(PATH, wanted)
    assert counts(answer) == (2, 2, 0, 0)
    assert [(each["task_id"], each["outcome"]) for each in answer["results"]] == [
        (task_id, "accepted") for _, task_id in begun
    ]
    again = stack.grpc(OTHER_ORG).call("CancelTasks", filter={"metadata": {"team": "a"}})
    assert counts(again) == (2, 0, 2, 0)
    for other, (gate, task_id) in zip(others, begun, strict=True):
        # The iteration ends normally, and no other begins.
        assert other.task(task_id)["status"] == "running"
        agent = stack.agent_pid(other.id)
        gate.open()
        end = other.await_end(task_id)
        assert (end["status"], end["iterations"], end["forced"]) == ("cancelled", 1, False)
        assert end["cancel"]["reason"] == "gone wrong"
        assert not (stack.files(other.id) / "never").exists()
        other.await_end(other.submit("true"))
        assert stack.agent_pid(other.id) == agent
        log = [entry["type"] for entry in other.log() if entry["task_id"] == task_id]
        assert log.count("task_cancel_requested") == 1
    assert "cancel_requested_at" not in ours.task(our_task)
    our_gate.open()
    assert ours.await_end(our_task)["status"] == "completed"


def test_the_agents_are_signalled(stack: Stack, others: list[Workspace]) -> None:
    """They end the iteration themselves: nobody has to end their pods."""
    agent = stack.agent_pid(others[0].id)
    task_ids = [other.submit("sleep 60") for other in others]
    for other, task_id in zip(others, task_ids, strict=True):
        other.await_phase(task_id, "tool_call")
    others[0].rest.post(PATH, {"force_after": "0s", "filter": {"workspace_ids": [others[0].id]}})
    end = others[0].await_end(task_ids[0])
    assert (end["status"], end["forced"]) == ("cancelled", True)
    assert (others[0].get()["status"], stack.agent_pid(others[0].id)) == ("idle", agent)
    assert others[1].task(task_ids[1])["status"] == "running"
    held = others[1].rest.post("/v1/hold", {"cancel_running": True, "reason": "stop"}, 200)
    assert (held["hold"]["on_hold"], held["accepted"], held["remaining"]) == (True, 1, 0)
    others[1].rest.post(PATH, {"force_after": "0s", "all": True})
    end = others[1].await_end(task_ids[1])
    assert (end["status"], end["forced"], end["cancel"]["reason"]) == ("cancelled", True, "stop")


def test_a_frozen_agent_does_not_delay_the_answer(stack: Stack, others: list[Workspace]) -> None:
    begun = begin(others)
    with stack.frozen_process(stack.agent_pid(others[0].id)):
        answer = others[0].rest.post(PATH, {"all": True})
        assert counts(answer) == (2, 2, 0, 0)
        begun[1][0].open()
        assert others[1].await_end(begun[1][1])["status"] == "cancelled"
    begun[0][0].open()
    assert others[0].await_end(begun[0][1])["status"] == "cancelled"


def test_own_permissions_cover_only_own_workspaces(stack: Stack, workspace: Workspace) -> None:
    [(gate, task_id)] = begin([workspace])
    assert counts(stack.rest("member").post(PATH, {"all": True})) == (0, 0, 0, 0)
    assert (
        stack.rest("read_only").fails("POST", PATH, json={"all": True}).slug == "permission_denied"
    )
    gate.open()
    assert workspace.await_end(task_id)["status"] == "completed"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "filter"),
        ({"filter": {}}, "filter"),
        ({"filter": {"task_ids": ["task_1"]}, "all": True}, "all"),
        ({"filter": {"submitted_by": ""}}, "filter.submitted_by"),
    ],
)
def test_what_names_no_tasks_is_refused(
    stack: Stack, workspace: Workspace, request_: dict[str, Any], field: str
) -> None:
    failed = workspace.rest.fails("POST", PATH, json=request_)
    assert (failed.status, failed.slug, list(failed.details["fields"])) == (
        400,
        "validation_error",
        [field],
    )
    (violation,) = (
        stack.grpc().fails("CancelTasks", **request_).details["BadRequest"]["field_violations"]
    )
    assert violation["field"] == field


def test_named_tasks_alone_are_cancelled(
    stack: Stack, others: list[Workspace], workspace: Workspace
) -> None:
    begun = begin(others)
    [(our_gate, our_task)] = begin([workspace])
    named = {"filter": {"task_ids": [begun[0][1], our_task, "task_unknown"]}}
    answer = others[0].rest.post(PATH, named)
    assert counts(answer) == (1, 1, 0, 0)
    assert [each["task_id"] for each in answer["results"]] == [begun[0][1]]
    for gate, _ in (*begun, (our_gate, our_task)):
        gate.open()
    ends = [other.await_end(task_id) for other, (_, task_id) in zip(others, begun, strict=True)]
    assert [end["status"] for end in ends] == ["cancelled", "completed"]
    assert workspace.await_end(our_task)["status"] == "completed"
    assert counts(others[0].rest.post(PATH, named)) == (0, 0, 0, 0)


def test_the_client_cancels_until_nothing_remains(stack: Stack, others: list[Workspace]) -> None:
    begun = begin(others)
    with Client(f"http://{stack.ready['grpc_addr']}", stack.tokens[OTHER_ORG]) as client:
        wanted = TaskFilter(workspace_ids=tuple(other.id for other in others))
        assert client.cancel_tasks(filter=wanted, dry_run=True).matched == 2
        (result,) = client.cancel_all_tasks(filter=wanted, reason="from Python")
        assert (result.accepted, [each.outcome for each in result.results]) == (
            2,
            ["accepted"] * 2,
        )
        for other, (gate, task_id) in zip(others, begun, strict=True):
            gate.open()
            assert client.wait_for_task(other.id, task_id, timeout=20).status == "cancelled"
    entries = others[0].rest.get("/v1/audit", params={"rpc": "CancelTasks"})["entries"]
    assert [entry["outcome"] for entry in entries[:2]] == ["ok", "dry_run"]
    eventually(lambda: others[0].get()["status"] == "idle")
