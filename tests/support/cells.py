"""Every cell of the matrix of cancellations, and an oracle for each that shares nothing with the
service.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import grpc

# `intent`: busy, and the cancellation of its task is already recorded.
STATES = ("provisioning", "idle", "busy", "intent", "stopping", "stopped", "failed")
HAS_CURRENT_TASK = ("busy", "intent", "stopping")
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
# The protocol of a call. `path` is REST with the task in the path instead of the body.
WIRES = ("rest", "path", "grpc")
# Whose workspaces there are. The member's, where `:own` matches, in some states only.
PLACES = tuple((state, "owner") for state in STATES) + tuple(
    (state, "member") for state in ("idle", "busy", "intent")
)

# The row of the contract's tables that each answer stands for.
STATUSES = {
    "unauthenticated": (401, grpc.StatusCode.UNAUTHENTICATED),
    "validation_error": (400, grpc.StatusCode.INVALID_ARGUMENT),
    "permission_denied": (403, grpc.StatusCode.PERMISSION_DENIED),
    "workspace_not_found": (404, grpc.StatusCode.NOT_FOUND),
    "task_not_found": (404, grpc.StatusCode.NOT_FOUND),
    "workspace_provisioning": (409, grpc.StatusCode.FAILED_PRECONDITION),
    "workspace_stopped": (409, grpc.StatusCode.FAILED_PRECONDITION),
    "workspace_failed": (409, grpc.StatusCode.FAILED_PRECONDITION),
    "already_finished": (202, grpc.StatusCode.OK),
    "no_active_task": (202, grpc.StatusCode.OK),
    "already_requested": (202, grpc.StatusCode.OK),
    "accepted": (202, grpc.StatusCode.OK),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One call: on which workspace, by whom, for which task, over which wire."""

    state: str
    creator: str
    credential: str
    task: str
    wire: str

    @property
    def answer(self) -> str:
        """The slug or the outcome: of all checks, the first that has something to say."""
        return next(answer for _, check in CHECKS if (answer := check(self)))

    @property
    def fails(self) -> bool:
        return STATUSES[self.answer][0] != 202

    @property
    def required(self) -> list[str]:
        """What would do, where permission is denied."""
        return (
            ["workspace:write", "workspace:write:own"]
            if self.credential == "read_only"
            else ["workspace:write"]
        )


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
    """Some combinations cannot be: a workspace that runs nothing has no current task, and a path
    always names one.
    """
    return (cell.task != "current" or cell.state in HAS_CURRENT_TASK) and (
        cell.task != "none" or cell.wire != "path"
    )


MATRIX = [
    cell
    for (state, creator), *rest in product(PLACES, CREDENTIALS, TASKS, WIRES)
    if exists(cell := Cell(state, creator, *rest))
]
