"""Splits a history into operations: what each call does to, or says about, each workspace."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from evershell.histories.lines import Call, History
from evershell.histories.model import CANCELLED, TERMINAL, Effect, Fact, Operation

# An organization and a workspace. If a call needs no workspace, the workspace is empty.
Place = tuple[str, str]

# How long a call may still take effect after an error that does not tell whether it had an effect.
# A call without an answer may take effect at any later time.
LATE_SECONDS = 60.0
# After these errors, a call certainly had no effect. Other errors do not tell whether it had one,
# except those that `_unreachable` finds.
_REFUSALS = frozenset(
    {
        "validation_error",
        "unauthenticated",
        "permission_denied",
        "rate_limited",
        "workspace_not_found",
        "task_not_found",
        "workspace_provisioning",
        "workspace_stopped",
        "workspace_failed",
        "workspace_deleting",
        "workspace_busy",
        "invalid_state",
        "org_on_hold",
        "parent_not_running",
        "tree_limit_reached",
        "idempotency_conflict",
        "too_many_webhooks",
        "webhook_not_found",
        "payload_too_large",
        "unsupported_media_type",
        "headers_too_large",
        "not_found",
        "method_not_allowed",
    }
)
_GONE = "workspace_not_found"
# By error: what a refusal says about the workspace. `_refused` handles the special cases.
_FACTS_OF_REFUSALS = {
    "org_on_hold": "held",
    "workspace_deleting": "deleted",
    _GONE: "deleted",
}


@dataclass(slots=True)
class Claims:
    """The operations of each workspace in the order in which they began, and facts about tasks."""

    operations: dict[Place, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    # The tasks with limits, which the service itself may cancel.
    limited: set[str] = field(default_factory=set)
    # By task, the `seq` of its `task_submitted` event.
    seqs: dict[str, int] = field(default_factory=dict)
    # For each child task: its submission, and the id of its parent.
    children: list[tuple[Operation, str]] = field(default_factory=list)


def claims(history: History) -> Claims:
    """Splits the history into operations."""
    return _Splitter(history).claims


class _Splitter:
    def __init__(self, history: History) -> None:
        self.claims = Claims()
        self._exists: set[Place] = set()
        # By workspace: when its creation began, and when it was answered.
        self._created: dict[Place, tuple[float, float]] = {}
        # By workspace: the latest time at which a call on it could still take effect.
        self._last: defaultdict[Place, float] = defaultdict(float)
        self._deleted: set[Place] = set()
        # By task: its children.
        self._children: dict[str, set[str]] = defaultdict(set)
        # By task: its workspace.
        self._workspaces: dict[str, Place] = {}
        for call in history.calls:
            self._look(call)
        for call in history.calls:
            self._split(call)
        for delivery in history.deliveries:
            place = self._workspaces.get(str(delivery.event.get("task_id")))
            if place:
                self._seen(place, delivery.event, delivery.at, delivery)
        for operations in self.claims.operations.values():
            operations.sort(key=lambda each: each.began)

    # The first pass collects what must be known before calls can be split.

    def _look(self, call: Call) -> None:
        """Notes the workspaces and the tasks that the call shows."""
        self._exists.add((call.org, ""))
        answer = call.answer or {}
        here = call.org, call.workspace_id
        self._last[here] = max(self._last[here], call.ended + LATE_SECONDS)
        if call.answer is not None and call.workspace_id:
            self._exists.add(here)
        for _ in _of(call, "DeleteWorkspace"):
            self._deleted.add(here)
        for each in _of(call, "CreateWorkspace"):
            place = call.org, each["id"]
            began, ended = self._created.get(place, (call.began, call.ended))
            self._created[place] = min(began, call.began), min(ended, call.ended)
        for each in (*answer.get("workspaces", ()), *_of(call, "CreateWorkspace")):
            self._exists.add((call.org, each["id"]))
        for each in _of(call, "SubmitTask"):
            task = {**call.arguments, "id": each["task_id"]}
            self._know(call.org, task)
        for each in (*answer.get("tasks", ()), *_of(call, "GetTask"), *_task_of(call)):
            self._know(call.org, each)
        for each in answer.get("results", ()):
            self._exists.add((call.org, each["workspace_id"]))
        for _, message in call.messages:
            event = message.get("event", {})
            if submitted := event.get("task_submitted"):
                self._know(call.org, {**submitted, **event, "id": event["task_id"]})

    def _know(self, org: str, task: Mapping[str, Any]) -> None:
        place = org, str(task["workspace_id"])
        self._exists.add(place)
        self._workspaces[task["id"]] = place
        if task.get("limits"):
            self.claims.limited.add(task["id"])
        if parent := task.get("parent_task_id"):
            self._children[parent].add(task["id"])

    def _descendants(self, task: str) -> Iterator[str]:
        for child in self._children.get(task, ()):
            yield child
            yield from self._descendants(child)

    # The second pass splits the calls.

    def _split(self, call: Call) -> None:
        here = call.org, call.workspace_id
        for at, message in call.messages:
            if "event" in message:
                event = message["event"]
                self._seen(here, event, at, Seen(call.caller, at, event))
        if call.answer is not None:
            self._answered(call, here, call.answer)
        elif call.error in _REFUSALS:
            self._refused(call, here)
        elif not self._unreachable(call, here):
            self._lost(call, here)

    def _answered(self, call: Call, here: Place, answer: Mapping[str, Any]) -> None:
        for task in (*answer.get("tasks", ()), *_of(call, "GetTask"), *_task_of(call)):
            if call.name != "ListTasks" or not call.workspace_id:
                self._facts(call, (call.org, task["workspace_id"]), *_facts_of_task(task))
        for each in answer.get("workspaces", ()):
            self._facts(call, (call.org, each["id"]), *_facts_of_workspace(each))
        match call.name:
            case "SubmitTask":
                self._submitted(call, here, answer["task_id"], str(answer.get("status", "")))
            case "CancelTask":
                self._cancelled(call, here, answer)
            case "CancelTasks" if not call.arguments.get("dry_run"):
                self._cancelled_many(call, answer)
            case "ListTasks" if call.workspace_id:
                self._listed(call, here, answer)
            case "GetWorkspace":
                self._facts(call, here, *_facts_of_workspace(answer))
            case "CreateWorkspace":
                self._facts(call, here, Fact("not held"))
            case "ResumeWorkspace":
                self._facts(call, here, Fact("not held"), Fact("not deleted"))
            case "StopWorkspace":
                self._effect(call, here, Effect.STOP)
            case "DeleteWorkspace":
                self._effect(call, here, Effect.DELETE)
            case "HoldOrg":
                self._everywhere(call, Effect.HOLD)
                if call.arguments.get("cancel_running"):
                    is_done = not int(answer.get("remaining", 0))
                    self._everywhere(call, Effect.STOP, is_optional=not is_done)
            case "ReleaseOrg":
                self._everywhere(call, Effect.RELEASE)
            case "GetHold":
                for place in self._existing(call):
                    self._facts(call, place, Fact("held" if answer["on_hold"] else "not held"))

    def _submitted(self, call: Call, here: Place, task: str, status: str = "") -> None:
        submission = self._effect(call, here, Effect.SUBMIT, task)
        if status in TERMINAL:
            self._facts(call, here, Fact("ended", task, status))
        if parent := call.arguments.get("parent_task_id"):
            self.claims.children.append((submission, parent))

    def _cancelled(self, call: Call, here: Place, answer: Mapping[str, Any]) -> None:
        task = str(answer.get("task_id") or "")
        if call.arguments.get("task_id", task) != task:
            self._facts(call, here, Fact("never"))
        match answer["outcome"]:
            case "accepted":
                self._effect(call, here, Effect.ACCEPT, task)
            case "already_requested":
                self._facts(call, here, Fact("asked", task))
            case "already_finished":
                self._facts(call, here, Fact("ended", task))
            case "no_active_task":
                self._facts(call, here, Fact("no task"))
        if call.arguments.get("include_descendants"):
            self._sweep(call, task)

    def _sweep(self, call: Call, task: str, *, is_optional: bool = False) -> None:
        """Adds the cancellation of the task's descendants that have not ended."""
        effect = Effect.ASK if is_optional else Effect.SWEEP
        for each in self._descendants(task):
            self._effect(call, self._workspaces[each], effect, each, is_optional=is_optional)

    def _cancelled_many(self, call: Call, answer: Mapping[str, Any]) -> None:
        results = answer.get("results", ())
        for each in results:
            place = call.org, each["workspace_id"]
            if each["outcome"] == "accepted":
                self._effect(call, place, Effect.ACCEPT, each["task_id"])
            else:
                self._facts(call, place, Fact("asked", each["task_id"]))
        if call.arguments.get("all") and not int(answer.get("remaining", 0)):
            named = {(call.org, each["workspace_id"]) for each in results}
            for place in self._existing(call):
                if place not in named:
                    self._facts(call, place, Fact("all asked"))

    def _listed(self, call: Call, here: Place, answer: Mapping[str, Any]) -> None:
        """Adds the facts of a list as one operation: the page shows all its tasks at one moment."""
        tasks = answer.get("tasks", ())
        facts = [fact for task in tasks for fact in _facts_of_task(task)]
        is_active = bool(call.arguments.get("active"))
        names = set(call.arguments) - {"workspace_id", "page_size", "active"}
        if not names and not answer.get("next_page_token") and is_active and not tasks:
            facts.append(Fact("no task"))
        if not names and not is_active and tasks:
            facts.append(Fact("last", tasks[0]["id"]))
        self._facts(call, here, *facts)

    def _refused(self, call: Call, here: Place) -> None:
        if call.name == "HoldOrg" or (call.error == _GONE and here not in self._exists):
            return
        task = str(call.arguments.get("task_id", ""))
        if call.error == _GONE and call.name == "DeleteWorkspace":
            # This answer is always wrong, because the deletion of a deleted workspace succeeds.
            self._facts(call, here, Fact("never"))
        elif call.error == "workspace_busy":
            self._facts(call, here, Fact("active", str(call.details.get("task_id", ""))))
        elif call.error == "task_not_found" and task:
            self._facts(call, here, Fact("missing", task))
        elif name := _FACTS_OF_REFUSALS.get(call.error):
            self._facts(call, here, Fact(name))

    def _unreachable(self, call: Call, here: Place) -> bool:
        """Whether the error says that the call took effect. If so, adds the effect."""
        task = str(call.details.get("task_id", ""))
        is_recorded = str(call.details.get("intent_recorded")).lower() == "true"
        if call.name == "SubmitTask" and call.error == "agent_unreachable":
            self._submitted(call, here, task)
            self._facts(call, here, Fact("ended", task))
            return True
        if is_recorded:
            self._effect(call, here, Effect.ASK, task)
            if call.arguments.get("include_descendants"):
                self._sweep(call, task)
        return is_recorded

    def _lost(self, call: Call, here: Place) -> None:
        """Adds the effect that the call may have had, as an optional operation."""
        match call.name:
            case "SubmitTask":
                self._effect(call, here, Effect.SUBMIT_UNKNOWN, is_optional=True)
            case "CancelTask":
                task = str(call.arguments.get("task_id", ""))
                self._effect(call, here, Effect.ASK, task, is_optional=True)
                if call.arguments.get("include_descendants"):
                    self._sweep(call, task, is_optional=True)
            case "StopWorkspace":
                self._effect(call, here, Effect.STOP, is_optional=True)
            case "DeleteWorkspace":
                self._effect(call, here, Effect.DELETE, is_optional=True)
            case "CancelTasks":
                self._everywhere(call, Effect.STOP, is_optional=True)
            case "HoldOrg":
                self._everywhere(call, Effect.HOLD, is_optional=True)
                if call.arguments.get("cancel_running"):
                    self._everywhere(call, Effect.STOP, is_optional=True)
            case "ReleaseOrg":
                self._everywhere(call, Effect.RELEASE, is_optional=True)

    def _seen(self, place: Place, event: Mapping[str, Any], at: float, source: object) -> None:
        """Adds what the event says about its task at the time `at`."""
        if task := event.get("task_id"):
            fact = Fact("submitted", task)
            if event["type"] == "task_submitted":
                self.claims.seqs[task] = int(event["seq"])
            if event["type"] == "task_completed":
                fact = Fact("ended", task, event["task_completed"]["status"])
            elif event["type"] == "task_cancel_requested":
                # The task may already have ended, but then only as `cancelled`.
                fact = Fact("asked or ended", task, CANCELLED)
            self.claims.operations[place].append(Operation(source, at, at, facts=(fact,)))

    def _places(self, call: Call) -> list[Place]:
        """The places of the organization in which an answer may show an effect of the call.

        Leaves out workspaces that were created after the call could take effect: a workspace is
        created only while there is no hold, so no earlier hold applies to it. Leaves out deleted
        workspaces on which no call could take effect any more when this call began.
        """
        return [
            place
            for place in self._exists
            if place[0] == call.org
            and self._creation(place, call)[0] <= call.ended + LATE_SECONDS
            and not (place in self._deleted and self._last[place] < call.began)
        ]

    def _existing(self, call: Call) -> list[Place]:
        """The places among `_places` whose creation was answered before this call began.

        The other workspaces may not have existed yet, so the answer may not be about them.
        """
        return [each for each in self._places(call) if self._creation(each, call)[1] <= call.began]

    def _creation(self, place: Place, call: Call) -> tuple[float, float]:
        """When the creation of the workspace began and ended; if unknown, before this call."""
        return self._created.get(place, (call.began, call.began))

    def _everywhere(self, call: Call, effect: Effect, *, is_optional: bool = False) -> None:
        for place in self._places(call):
            self._effect(call, place, effect, is_optional=is_optional)

    def _effect(
        self, call: Call, place: Place, effect: Effect, task: str = "", *, is_optional: bool = False
    ) -> Operation:
        ended = call.ended + LATE_SECONDS if is_optional else call.ended
        new = Operation(call, call.began, ended, effect, task, is_optional=is_optional)
        self.claims.operations[place].append(new)
        return new

    def _facts(self, call: Call, place: Place, *facts: Fact) -> None:
        if facts:
            new = Operation(call, call.began, call.ended, facts=facts)
            self.claims.operations[place].append(new)


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that a watcher saw."""

    caller: str
    at: float
    event: Mapping[str, Any]

    def __str__(self) -> str:
        parts = (str(self.event.get(name)) for name in ("seq", "type", "task_id"))
        status = self.event.get("task_completed", {}).get("status", "")
        return f"{self.at:.3f} {self.caller} saw {', '.join(parts)} {status}".rstrip()


def _of(call: Call, name: str) -> list[Mapping[str, Any]]:
    return [call.answer] if call.answer is not None and call.name == name else []


def _task_of(call: Call) -> list[Mapping[str, Any]]:
    """The task in the answer to CancelTask, if there is one."""
    return [each["task"] for each in _of(call, "CancelTask") if each.get("task")]


def _facts_of_task(task: Mapping[str, Any]) -> Iterator[Fact]:
    if task["status"] in TERMINAL:
        yield Fact("ended", task["id"], task["status"])
    else:
        yield Fact("asked" if task.get("cancel_requested_at") else "running", task["id"])


def _facts_of_workspace(workspace: Mapping[str, Any]) -> Iterator[Fact]:
    current = workspace.get("current_task_id")
    yield Fact("active", current) if current else Fact("no task")
    yield Fact("deleted" if workspace["status"] == "deleting" else "not deleted")
