"""CancelTasks through the edge, over REST and gRPC, for tasks of a second organization."""

from typing import Any

from tests.support.other_org import OTHER_ORG, begin
from tests.support.stack import Stack, Workspace

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
        # The current iteration ends normally, and no other iteration begins.
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
    """The agents interrupt their iterations themselves, so no pod has to be ended."""
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


def test_a_repeat_with_a_key_says_what_the_first_call_did(
    stack: Stack, others: list[Workspace]
) -> None:
    begun = begin(others)
    wanted = {"filter": {"task_ids": [task_id for _, task_id in begun]}}
    headers = {"idempotency-key": f"cancel {begun[0][1]}"}
    rest = others[0].rest

    def cancel(**fields: Any) -> Any:
        return rest.call("POST", PATH, json=wanted | fields, headers=headers).json()

    first = cancel()
    assert counts(first) == (2, 2, 0, 0)
    assert cancel() == first
    assert cancel(reason="another request")["error"]["code"] == "idempotency_conflict"
    assert counts(rest.post(PATH, wanted)) == (2, 0, 2, 0)
    for gate, _ in begun:
        gate.open()


def test_a_frozen_agent_does_not_delay_the_answer(stack: Stack, others: list[Workspace]) -> None:
    begun = begin(others)
    with stack.frozen_process(stack.agent_pid(others[0].id)):
        answer = others[0].rest.post(PATH, {"all": True})
        assert counts(answer) == (2, 2, 0, 0)
        begun[1][0].open()
        assert others[1].await_end(begun[1][1])["status"] == "cancelled"
    begun[0][0].open()
    assert others[0].await_end(begun[0][1])["status"] == "cancelled"
