"""Makes the calls of the matrix's cells on a real stack, and checks each against the oracle."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.support.cells import MATRIX, STATUSES, Cell
from tests.support.stack import Gate, Stack, Workspace
from tests.support.wires import Failed

MALFORMED = "no good"
UNKNOWN = "task_01ARZ3NDEKTSV4RRFFQ69G5FAV"
FIRST_REASON = "the first to ask"
# The actor of each credential.
ACTORS = {
    "full_access": "key_",
    "submit_observe": "key_",
    "owner": "user_owner",
    "member": "user_member",
}


@dataclass(slots=True)
class Place:
    """A workspace in the state of its cells."""

    workspace: Workspace
    gate: Gate
    tasks: dict[str, str]
    finished_status: str = "completed"

    def begin(self) -> str:
        """Submits a task that runs until the gate is opened."""
        task_id = self.workspace.submit(Gate.command, "touch never")
        self.workspace.await_phase(task_id, "tool_call")
        self.tasks["current"] = task_id
        return task_id

    def end(self) -> dict[str, Any]:
        """Opens the gate and returns the end of the task."""
        self.gate.open()
        return self.workspace.await_end(self.tasks.pop("current"))


@dataclass(frozen=True, slots=True)
class Places:
    """All places, and a bystander workspace whose running task is the foreign task."""

    stack: Stack
    bystander: Place
    places: dict[tuple[str, str], Place]

    def snapshot(self, place: Place) -> dict[str, Any]:
        """The database rows of the place and the bystander, without the expiry of their leases."""
        of = [place.workspace.id, self.bystander.workspace.id]
        with self.stack.database() as connection:
            row = connection.execute(
                """
                SELECT
                    (SELECT jsonb_agg(to_jsonb(w) - 'lease_expires_at' ORDER BY id)
                     FROM workspaces w WHERE id = ANY(%(of)s)),
                    (SELECT jsonb_agg(to_jsonb(t) ORDER BY id)
                     FROM tasks t WHERE workspace_id = ANY(%(of)s)),
                    (SELECT jsonb_agg(to_jsonb(e) ORDER BY workspace_id, seq)
                     FROM events e WHERE workspace_id = ANY(%(of)s))
                """,
                {"of": of},
            ).fetchone()
        assert row is not None
        return {"workspaces": row[0], "tasks": row[1], "events": row[2]}


def prepare(stack: Stack, state: str, creator: str) -> Place:
    """Brings a workspace as close to the state as possible before its cells run."""
    workspace = Workspace(stack, creator)
    place = Place(
        workspace, Gate(workspace), {"unknown": UNKNOWN, "malformed": MALFORMED, "none": ""}
    )
    place.tasks["finished"] = workspace.submit("true")
    workspace.await_end(place.tasks["finished"])
    if state in ("busy", "intent", "stopping"):
        place.begin()
    if state == "intent":
        assert workspace.cancel(reason=FIRST_REASON)["outcome"] == "accepted"
    if state in ("stopped", "provisioning"):
        # The running task becomes the finished task.
        place.tasks["finished"], place.finished_status = place.begin(), "cancelled"
        workspace.rest.post(f"{workspace.path}/stop")
        place.end()
        workspace.await_status("stopped")
    if state == "failed":
        place.tasks["finished"], place.finished_status = place.begin(), "failed"
        stack.kill(stack.agent_pid(workspace.id))
        workspace.await_end(place.tasks.pop("current"))
        workspace.await_status("failed")
    return place


@contextmanager
def prepared_places(stack: Stack, names: Sequence[tuple[str, str]]) -> Iterator[Places]:
    """The places of these states and creators. Their tasks end when the context exits."""
    with ThreadPoolExecutor(4) as pool:
        preparing = {place: pool.submit(prepare, stack, *place) for place in names}
        bystander = prepare(stack, "busy", "owner")
        prepared = {place: future.result() for place, future in preparing.items()}
    for place in prepared.values():
        place.tasks["foreign"] = bystander.tasks["current"]
    yield Places(stack, bystander, prepared)
    for each in (
        bystander,
        *(place for (state, _), place in prepared.items() if state in ("busy", "intent")),
    ):
        each.end()


def enter(stack: Stack, state: str, place: Place, held: ExitStack) -> None:
    """Enters the state, and holds a transient state until the context ends.

    The controller is frozen, so no pod starts or ends. In `stopping`, the agent is frozen too.
    """
    if state in ("provisioning", "stopping"):
        held.enter_context(stack.frozen("fleet"))
    if state == "provisioning":
        assert (
            place.workspace.rest.post(f"{place.workspace.path}/resume")["status"] == "provisioning"
        )
    if state == "stopping":
        assert place.workspace.rest.post(f"{place.workspace.path}/stop")["status"] == "stopping"
        held.enter_context(stack.frozen_process(stack.agent_pid(place.workspace.id)))


def call(stack: Stack, cell: Cell, place: Place) -> dict[str, Any] | Failed:
    """Makes the cell's call and compares its result with the oracle."""
    task_id = place.tasks[cell.task]
    if cell.wire == "grpc":
        grpc_ = stack.grpc(cell.credential)
        fields: dict[str, Any] = {"workspace_id": place.workspace.id, "task_id": task_id or None}
        return (
            grpc_.fails("CancelTask", **fields)
            if cell.fails
            else grpc_.call("CancelTask", **fields)
        )
    rest = stack.rest(cell.credential)
    if cell.wire == "path":
        path, body = f"{place.workspace.path}/tasks/{quote(task_id)}/cancel", None
    else:
        path, body = (
            f"{place.workspace.path}/task/cancel",
            {"task_id": task_id} if task_id else None,
        )
    return rest.fails("POST", path, json=body) if cell.fails else rest.post(path, body)


def facts(failed: Failed, cell: Cell) -> dict[str, Any]:
    """The details by their names in the envelope, over REST or gRPC."""
    if cell.wire != "grpc":
        return dict(failed.details)
    found = dict(failed.details["ErrorInfo"].get("metadata", {}))
    if "required" in found:
        found["required"] = found["required"].split(",")
    if "BadRequest" in failed.details:
        found["fields"] = {
            each["field"]: each["description"]
            for each in failed.details["BadRequest"]["field_violations"]
        }
    if "ResourceInfo" in failed.details:
        found |= {
            name: failed.details["ResourceInfo"][name]
            for name in ("resource_type", "resource_name")
        }
    if "PreconditionFailure" in failed.details:
        (violation,) = failed.details["PreconditionFailure"]["violations"]
        assert (violation["type"], violation["subject"]) == (
            failed.slug.upper(),
            found["workspace_id"],
        )
    return found


def expected_facts(cell: Cell, place: Place) -> dict[str, Any]:
    id_ = place.workspace.id
    match cell.answer:
        case "validation_error":
            return {"fields": {"task_id": "must be 1 to 128 characters of A-Z a-z 0-9 _ -"}}
        case "permission_denied":
            return {"required": cell.required}
        case "workspace_not_found":
            return {"resource_type": "workspace", "resource_name": id_}
        case "task_not_found":
            return {
                "resource_type": "task",
                "resource_name": place.tasks[cell.task],
                "workspace_id": id_,
            }
        case "workspace_provisioning" | "workspace_stopped" | "workspace_failed":
            return {"workspace_id": id_, "status": cell.state}
    return {}


def check_failure(failed: Failed, cell: Cell, place: Place) -> None:
    assert (failed.slug, failed.status) == (
        cell.answer,
        STATUSES[cell.answer][cell.wire == "grpc"],
    ), cell
    assert facts(failed, cell) == expected_facts(cell, place), cell


def check_reply(reply: dict[str, Any], cell: Cell, place: Place) -> None:
    assert (reply["outcome"], reply["workspace_id"]) == (cell.answer, place.workspace.id), cell
    if cell.answer == "no_active_task":
        assert reply["task_id"] == ""
        assert not {"task", "requested_at"} & set(reply)
        return
    finished = cell.answer == "already_finished"
    task_id = place.tasks["finished" if finished else "current"]
    task = reply["task"]
    assert (reply["task_id"], task["id"], task["workspace_id"]) == (
        task_id,
        task_id,
        place.workspace.id,
    )
    assert task["status"] == (place.finished_status if finished else "running")
    assert (
        task.get("completed_at")
        if finished
        else task["phase"] == "tool_call" and "completed_at" not in task
    )
    assert (reply["requested_by"], reply["reason"]) == (
        task["cancel_requested_by"],
        task["cancel_reason"],
    )
    assert reply.get("requested_at") == task.get("cancel_requested_at")
    if cell.answer == "already_requested":
        assert (reply["requested_by"], reply["reason"]) == (ACTORS[cell.creator], FIRST_REASON)
    if cell.answer == "accepted":
        assert reply["requested_by"].startswith(ACTORS[cell.credential])


def check_cells_that_change_nothing(stack: Stack, places: Places, state: str, creator: str) -> None:
    """Makes the calls of all cells of this place that record nothing."""
    place = places.places[state, creator]
    cells = [
        cell
        for cell in MATRIX
        if (cell.state, cell.creator) == (state, creator) and cell.answer != "accepted"
    ]
    with ExitStack() as held:
        enter(stack, state, place, held)
        before = places.snapshot(place)
        for cell in cells:
            answer = call(stack, cell, place)
            if isinstance(answer, Failed):
                check_failure(answer, cell, place)
            else:
                check_reply(answer, cell, place)
            assert places.snapshot(place) == before, cell


def check_cells_that_record(stack: Stack, places: Places, creator: str, at_most: int) -> None:
    """Makes the calls of up to `at_most` cells that record a cancellation."""
    # The workspace is idle before and after each cell, because each cell has its own task.
    place = places.places["idle", creator]
    workspace = place.workspace
    cells = [cell for cell in MATRIX if cell.creator == creator and cell.answer == "accepted"]
    for cell in cells[:at_most]:
        task_id = place.begin()
        before = workspace.log()
        reply = call(stack, cell, place)
        assert isinstance(reply, dict)
        check_reply(reply, cell, place)
        (requested,) = workspace.log()[len(before) :]
        assert (requested["type"], requested["task_id"]) == ("task_cancel_requested", task_id)
        assert requested["cancel"]["requested_by"] == reply["requested_by"]
        assert requested["cancel"]["credential_kind"] == (
            "api_key" if reply["requested_by"].startswith("key_") else "session"
        )
        end = place.end()
        assert (end["status"], end["iterations"], end["forced"]) == ("cancelled", 1, False), cell
        assert end["cancel"] == {
            **requested["cancel"],
            "requested_at": reply["requested_at"],
            "force_requested_by": "",
        }
        since = Counter(entry["type"] for entry in workspace.log()[len(before) :])
        assert since == {"task_cancel_requested": 1, "iteration_completed": 1, "task_completed": 1}
    assert not (stack.files(workspace.id) / "never").exists()
