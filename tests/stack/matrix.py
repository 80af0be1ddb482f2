"""Every cell of the matrix of cancellations: the call to make on a stack, and the expected answer.

The oracle computes the expected answers without using code of the service.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any
from urllib.parse import quote

import grpc

from tests.support.stack import Gate, Stack, Workspace
from tests.support.wires import Failed

# `intent` stands for a busy workspace whose task has a recorded cancellation.
STATES = ("provisioning", "idle", "busy", "intent", "stopping", "stopped", "failed", "deleting")
HAS_CURRENT_TASK = ("busy", "intent", "stopping", "deleting")
CREDENTIALS = (
    "full_access",
    "submit_observe",
    "read_only",
    "owner",
    "member",
    "expired",
    "",
    "other_org",
)
TASKS = ("none", "current", "finished", "foreign", "unknown", "malformed")
# The protocol of a call. `path` is REST with the task in the path instead of in the body.
WIRES = ("rest", "path", "grpc")
# The state and the creator of each workspace. Three workspaces are created by the member, whose
# `:own` permission matches no other workspace.
PLACES = tuple((state, "owner") for state in STATES) + tuple(
    (state, "member") for state in ("idle", "busy", "intent")
)

# The HTTP status and the gRPC code of each answer, as the documents promise them.
STATUSES = {
    "unauthenticated": (401, grpc.StatusCode.UNAUTHENTICATED),
    "validation_error": (400, grpc.StatusCode.INVALID_ARGUMENT),
    "permission_denied": (403, grpc.StatusCode.PERMISSION_DENIED),
    "workspace_not_found": (404, grpc.StatusCode.NOT_FOUND),
    "task_not_found": (404, grpc.StatusCode.NOT_FOUND),
    "workspace_provisioning": (409, grpc.StatusCode.FAILED_PRECONDITION),
    "workspace_stopped": (409, grpc.StatusCode.FAILED_PRECONDITION),
    "workspace_failed": (409, grpc.StatusCode.FAILED_PRECONDITION),
    "workspace_deleting": (409, grpc.StatusCode.FAILED_PRECONDITION),
    "already_finished": (202, grpc.StatusCode.OK),
    "no_active_task": (202, grpc.StatusCode.OK),
    "already_requested": (202, grpc.StatusCode.OK),
    "accepted": (202, grpc.StatusCode.OK),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A call: on which workspace, by whom, for which task, and over which protocol."""

    state: str
    creator: str
    credential: str
    task: str
    wire: str

    @property
    def answer(self) -> str:
        """The expected slug or outcome: the first result of CHECKS that is not empty."""
        return next(answer for _, check in CHECKS if (answer := check(self)))

    @property
    def fails(self) -> bool:
        return STATUSES[self.answer][0] != 202


def authenticate(cell: Cell) -> str:
    return "unauthenticated" if cell.credential in ("", "expired") else ""


def validate(cell: Cell) -> str:
    return "validation_error" if cell.task == "malformed" else ""


def scope(cell: Cell) -> str:
    return "permission_denied" if cell.credential == "read_only" else ""


def workspace_in_organization(cell: Cell) -> str:
    return "workspace_not_found" if cell.credential == "other_org" else ""


def creator_match(cell: Cell) -> str:
    return "permission_denied" if cell.credential == "member" and cell.creator != "member" else ""


def task_known(cell: Cell) -> str:
    return "task_not_found" if cell.task in ("foreign", "unknown") else ""


def task_ended(cell: Cell) -> str:
    return "already_finished" if cell.task == "finished" else ""


def workspace_state(cell: Cell) -> str:
    return {
        "provisioning": "workspace_provisioning",
        "stopping": "workspace_stopped",
        "stopped": "workspace_stopped",
        "failed": "workspace_failed",
        "deleting": "workspace_deleting",
    }.get(cell.state, "")


def nothing_to_record(cell: Cell) -> str:
    return {"idle": "no_active_task", "intent": "already_requested"}.get(cell.state, "")


def record(_: Cell) -> str:
    return "accepted"


CHECKS: list[tuple[str, Callable[[Cell], str]]] = [
    ("authenticate: 401", authenticate),
    ("validate the request: 400", validate),
    ("scope: 403", scope),
    ("workspace in the caller's organization: 404", workspace_in_organization),
    ("creator match: 403", creator_match),
    ("task known: 404", task_known),
    ("task ended: 202", task_ended),
    ("workspace state: 409", workspace_state),
    ("nothing to record: 202", nothing_to_record),
    ("record: 202", record),
]


def exists(cell: Cell) -> bool:
    """Whether the combination can exist.

    A workspace that runs nothing has no current task, and a path always names a task.
    """
    return (cell.task != "current" or cell.state in HAS_CURRENT_TASK) and (
        cell.task != "none" or cell.wire != "path"
    )


MATRIX = [
    cell
    for (state, creator), *rest in product(PLACES, CREDENTIALS, TASKS, WIRES)
    if exists(cell := Cell(state, creator, *rest))
]
MALFORMED = "no good"
UNKNOWN = "task_01ARZ3NDEKTSV4RRFFQ69G5FAV"
FIRST_REASON = "the first to ask"
# The beginning of the recorded actor of a call, by the credential of the call.
ACTORS = {
    "full_access": "key_",
    "submit_observe": "key_",
    "owner": "user_owner",
    "member": "user_member",
}


@dataclass(slots=True)
class Place:
    """A workspace in the state that its cells need."""

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
    """All places, and a bystander workspace. The bystander's running task is the `foreign` task."""

    stack: Stack
    bystander: Place
    places: dict[tuple[str, str], Place]

    def snapshot(self, place: Place) -> dict[str, Any]:
        """Returns the database rows of the place and the bystander, without `lease_expires_at`."""
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
    if state in HAS_CURRENT_TASK:
        place.begin()
    if state == "intent":
        assert workspace.cancel(reason=FIRST_REASON)["outcome"] == "accepted"
    if state in ("stopped", "provisioning"):
        # The stop ends a running task, which becomes the finished task.
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
    """Prepares the places for these states and creators. Their tasks end when the context exits."""
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
    """Brings the place into the state, and keeps it there until `held` is closed.

    For states that last only a moment, the controller is frozen, so that no pod starts or ends. In
    `stopping` and `deleting`, the agent is frozen too.
    """
    if state in ("provisioning", "stopping", "deleting"):
        held.enter_context(stack.frozen("fleet"))
    if state == "provisioning":
        assert (
            place.workspace.rest.post(f"{place.workspace.path}/resume")["status"] == "provisioning"
        )
    if state == "stopping":
        assert place.workspace.rest.post(f"{place.workspace.path}/stop")["status"] == "stopping"
        held.enter_context(stack.frozen_process(stack.agent_pid(place.workspace.id)))
    if state == "deleting":
        deleting = place.workspace.rest.call("DELETE", place.workspace.path)
        assert deleting.json()["status"] == "deleting"
        held.enter_context(stack.frozen_process(stack.agent_pid(place.workspace.id)))


def call(stack: Stack, cell: Cell, place: Place) -> dict[str, Any] | Failed:
    """Makes the call of the cell. Checks that it fails or succeeds as the oracle says."""
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


def check_failure(failed: Failed, cell: Cell) -> None:
    expected = (cell.answer, STATUSES[cell.answer][cell.wire == "grpc"])
    assert (failed.slug, failed.status) == expected, cell


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
    """Makes the calls of all cells of this place that record nothing, and checks the answers."""
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
                check_failure(answer, cell)
            else:
                check_reply(answer, cell, place)
            assert places.snapshot(place) == before, cell


def check_cells_that_record(stack: Stack, places: Places, creator: str, at_most: int) -> None:
    """Makes the calls of up to `at_most` cells that record a cancellation. Checks the records."""
    # Each cell submits and ends its own task, so an idle workspace is used.
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
