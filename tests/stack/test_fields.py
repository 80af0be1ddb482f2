"""Every field of every response message appears over REST. A new field needs a line here."""

from collections import defaultdict
from typing import Any

from evershell.workspace.v1 import (
    error_pb2,
    event_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.support.stack import Gate, Stack, Workspace

PACKAGE = "evershell.workspace.v1"
SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
# The answer of StreamEvents contains what WatchEvents returns.
REPLIES = {
    method.name: method.output_type for method in SERVICE.methods if method.name != "StreamEvents"
}
STREAMED = workspace_service_pb2.WatchEventsResponse.DESCRIPTOR
# A stream sends these after 15 s without an event, or when it fails. Other tests cover them.
ELSEWHERE = {f"{STREAMED.full_name}.heartbeat", f"{STREAMED.full_name}.error"}


class Seen:
    """Records which fields the responses had."""

    def __init__(self) -> None:
        self._fields: dict[str, set[str]] = defaultdict(set)
        self.absent: dict[str, set[str]] = defaultdict(set)

    def note(self, message: Descriptor, answer: dict[str, Any]) -> dict[str, Any]:
        """Records a response, checks its fields and returns it.

        It must have no unknown field, and every field without presence, even if it is zero.
        """
        assert set(answer) <= set(message.fields_by_name), (message.full_name, answer)
        self._fields[message.full_name] |= set(answer)
        for field in message.fields:
            if field.name not in answer:
                assert field.has_presence, f"{message.full_name}.{field.name} is not in {answer}"
                self.absent[message.full_name].add(field.name)
            elif (message_type := ours(field)) is not None:
                value = answer[field.name]
                for each in value if isinstance(value, list) else [value]:
                    self.note(message_type, each)
            else:
                assert answer[field.name] is not None
        return answer

    def missing(self) -> set[str]:
        """The fields that no response had."""
        expected = {
            f"{message.full_name}.{field.name}"
            for message in reachable()
            for field in message.fields
        }
        return expected - {
            f"{message}.{name}" for message, names in self._fields.items() for name in names
        }


def ours(field: FieldDescriptor) -> Descriptor | None:
    """The type of a message field. None for scalars, maps and the messages of Google."""
    message = field.message_type
    return (
        message
        if message is not None
        and message.file.package == PACKAGE
        and not message.GetOptions().map_entry
        else None
    )


def reachable() -> list[Descriptor]:
    """Every message that a response can contain, and Error."""
    found: dict[str, Descriptor] = {}
    queue = [*REPLIES.values(), error_pb2.Error.DESCRIPTOR]
    while queue:
        message = queue.pop()
        if message.full_name not in found:
            found[message.full_name] = message
            fields = [
                field
                for field in message.fields
                if f"{message.full_name}.{field.name}" not in ELSEWHERE
            ]
            queue += [inner for field in fields if (inner := ours(field)) is not None]
    return list(found.values())


def test_every_field_of_every_message_appears(stack: Stack) -> None:
    workspace, seen = Workspace(stack, "owner"), Seen()
    check_creation(stack, seen)
    task_id = check_task(workspace, seen)
    refused = workspace.rest.call("GET", f"{workspace.path}/tasks/task_unknown").json()["error"]
    seen.note(error_pb2.Error.DESCRIPTOR, refused)
    check_hold(stack, seen)
    check_life_cycle(workspace, seen)
    check_events(workspace, seen)
    rest, path = workspace.rest, workspace.path
    listed = seen.note(REPLIES["ListTasks"], rest.get(f"{path}/tasks"))
    assert listed["tasks"] == [workspace.task(task_id)]
    seen.note(REPLIES["ListWorkspaces"], rest.get("/v1/workspaces"))
    audit = seen.note(REPLIES["ListAuditEntries"], rest.get(f"{path}/audit"))["entries"]
    assert (audit[0]["rpc"], audit[-1]["rpc"]) == ("ResumeWorkspace", "CreateWorkspace")

    assert seen.missing() == ELSEWHERE
    # A field with presence that is not set is absent, not zero.
    assert seen.absent[task_pb2.Task.DESCRIPTOR.full_name] >= {
        "completed_at",
        "cancel_requested_at",
    }
    assert seen.absent[workspace_pb2.Workspace.DESCRIPTOR.full_name] == set()


def check_creation(stack: Stack, seen: Seen) -> None:
    """Checks a workspace that a user creates, and one that an API key creates."""
    by_user = seen.note(
        REPLIES["CreateWorkspace"],
        stack.rest("owner").post("/v1/workspaces", {"name": "named"}, status=201),
    )
    assert (by_user["name"], by_user["created_by_user_id"]) == ("named", "user_owner")
    assert (by_user["epoch"], by_user["current_task_id"], by_user["status_reason"]) == ("1", "", "")
    by_key = seen.note(
        REPLIES["CreateWorkspace"], stack.rest().post("/v1/workspaces", {}, status=201)
    )
    assert (by_key["created_by_user_id"], by_key["name"]) == ("", "")


def check_task(workspace: Workspace, seen: Seen) -> str:
    """Checks a task that is cancelled while it runs. Returns its id."""
    gate, rest = Gate(workspace), workspace.rest
    idle = seen.note(REPLIES["CancelTask"], workspace.cancel())
    assert (idle["outcome"], idle["task_id"]) == ("no_active_task", "")
    assert (idle["requested_by"], idle["reason"]) == ("", "")
    assert not {"task", "requested_at"} & set(idle)

    order = {
        "description": f"echo hi\n{gate.command}\ntrue",
        "metadata": {"ticket": "42"},
        "max_iterations": 7,
        "limits": {"max_duration": "600s", "max_total_tokens": "1000", "force_after": "1.500s"},
    }
    submitted = seen.note(REPLIES["SubmitTask"], rest.post(f"{workspace.path}/tasks", order))
    task_id = str(submitted["task_id"])
    assert submitted["workspace_id"] == workspace.id
    workspace.await_event("iteration_completed", task_id)
    workspace.await_phase(task_id, "tool_call")
    running = seen.note(REPLIES["GetTask"], workspace.task(task_id))
    assert {name: running[name] for name in order} == order
    assert (running["status"], running["forced"], running["iterations"]) == ("running", False, 1)
    assert running["started_at"] and not {"completed_at", "cancel_requested_at"} & set(running)
    not_cancelled = ("cancel_requested_by", "cancel_reason", "reason")
    assert [running[name] for name in not_cancelled] == ["", "", ""]
    busy = seen.note(REPLIES["GetWorkspace"], workspace.get())
    assert (busy["status"], busy["current_task_id"]) == ("busy", task_id)

    accepted = seen.note(
        REPLIES["CancelTask"], workspace.cancel(reason="enough", force_after="600s")
    )
    assert (accepted["outcome"], accepted["reason"]) == ("accepted", "enough")
    assert accepted["requested_by"] == "user_owner"
    task = accepted["task"]
    assert accepted["requested_at"] == task["cancel_requested_at"] < task["cancel_force_at"]
    batch = rest.post("/v1/tasks/cancel", {"filter": {"metadata": {"ticket": "42"}}})
    (result,) = seen.note(REPLIES["CancelTasks"], batch)["results"]
    assert (result["task_id"], result["outcome"]) == (task_id, "already_requested")
    gate.open()
    workspace.await_end(task_id)
    ended = seen.note(REPLIES["GetTask"], workspace.task(task_id))
    assert ended["status"] == "cancelled" and ended["completed_at"]
    assert (ended["usage"]["model_calls"], ended["usage"]["tool_calls"]) == ("2", "2")
    return task_id


def check_hold(stack: Stack, seen: Seen) -> None:
    """Checks a hold of another organization, and its release."""
    other = stack.rest("other_org")
    held = other.post("/v1/hold", {"reason": "stop", "cancel_running": True}, status=200)
    seen.note(REPLIES["HoldOrg"], held)
    assert seen.note(REPLIES["GetHold"], other.get("/v1/hold")) == held["hold"]
    released = seen.note(REPLIES["ReleaseOrg"], other.post("/v1/hold/release", status=200))
    assert "held_since" not in released


def check_life_cycle(workspace: Workspace, seen: Seen) -> None:
    """Checks a workspace that is stopped, is resumed, and loses its agent."""
    rest, path = workspace.rest, workspace.path
    stopping = seen.note(REPLIES["StopWorkspace"], rest.post(f"{path}/stop"))
    assert stopping["status"] == "stopping"
    workspace.await_status("stopped")
    resumed = seen.note(REPLIES["ResumeWorkspace"], rest.post(f"{path}/resume"))
    assert (resumed["status"], resumed["epoch"]) == ("provisioning", "2")
    workspace.await_event("workspace_resumed")
    workspace.stack.kill(workspace.stack.agent_pid(workspace.id))
    assert workspace.await_status("failed")["status_reason"]


def check_events(workspace: Workspace, seen: Seen) -> None:
    """Checks the whole log over REST: it has every type of event, each with its own payload."""
    payloads = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    last = workspace.log()[-1]["seq"]
    events: list[dict[str, Any]] = []
    for message in workspace.rest.events(workspace.id):
        events.append(seen.note(STREAMED, message)["event"])
        if events[-1]["seq"] == str(last):
            break
    assert [event["seq"] for event in events] == [str(seq) for seq in range(1, last + 1)]
    assert {event["type"] for event in events} == payloads
    for event in events:
        assert payloads & set(event) == {event["type"]}
        assert bool(event["task_id"]) == (not event["type"].startswith("workspace_"))
        assert event["time"] and event["workspace_id"] == workspace.id
    by_type = {event["type"]: event for event in events}
    assert by_type["workspace_provisioned"]["workspace_provisioned"] == {"epoch": "1"}
    assert by_type["workspace_resumed"]["workspace_resumed"] == {"epoch": "2"}
    assert by_type["task_started"]["task_started"] == {"epoch": "1"}
    assert by_type["task_submitted"]["task_submitted"]["submitted_by"] == "user_owner"
    assert by_type["workspace_failed"]["workspace_failed"]["reason"]
    assert (
        by_type["task_completed"]["task_completed"]["cancel"]
        == by_type["task_cancel_requested"]["task_cancel_requested"]["cancel"]
    )
    assert (
        by_type["iteration_completed"]["iteration_completed"]["tool_call"]["result"]["exit_code"]
        == 0
    )
