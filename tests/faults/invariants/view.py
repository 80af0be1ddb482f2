"""The committed rows of the database, together with the record of the run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from evershell.core.event import Event, EventType
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from tests.faults.invariants.record import Call, Iteration, Record
from tests.faults.invariants.world import World
from tests.support.promises import EventRecord, History, TaskRecord


@dataclass(frozen=True, slots=True)
class View:
    """The state of a run after a step, as the invariants check it."""

    world: World
    workspace: Workspace
    tasks: dict[str, Task]
    events: Sequence[Event]
    # The events of each task, by its id.
    log: dict[str, list[Event]]

    @classmethod
    async def of(cls, world: World) -> "View":
        events = await world.events()
        log: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            if event.task_id is not None:
                log[event.task_id].append(event)
        return cls(
            world,
            await world.workspace(),
            {task.id: task for task in await world.tasks()},
            events,
            log,
        )

    @property
    def record(self) -> Record:
        return self.world.record

    def events_of(self, task_id: str, type_: EventType) -> list[Event]:
        return [event for event in self.log[task_id] if event.type is type_]

    def calls_for(self, task_id: str) -> list[Call]:
        return [call for call in self.record.calls if call.target_id == task_id]

    def iterations_of(self, task_id: str) -> list[Iteration]:
        return [iteration for iteration in self.record.iterations if iteration.task_id == task_id]

    @property
    def history(self) -> History:
        """The history from which the promises are checked."""
        promised = [
            (call.target_id, f"{call.answer} was answered to {call.request_id}")
            for call in self.record.calls
            if call.is_promise and call.target_id is not None
        ]
        return History(
            tasks={task.id: _task_record(task) for task in self.tasks.values()},
            events=[_event_record(event) for event in self.events],
            last_seqs={self.workspace.id: self.workspace.last_seq},
            promised=promised,
        )


def _task_record(task: Task) -> TaskRecord:
    cancel = task.cancel
    return TaskRecord(
        id=task.id,
        workspace_id=task.workspace_id,
        status=task.status,
        iterations=task.iterations,
        forced=task.forced,
        model_calls=task.usage.model_calls,
        has_open_iteration=task.open_iteration is not None,
        iteration_lost=task.iteration_lost,
        completed_at=_seconds(task.completed_at),
        cancel_requested_at=_seconds(cancel.requested_at if cancel is not None else None),
        force_at=_seconds(cancel.force_at if cancel is not None else None),
    )


def _event_record(event: Event) -> EventRecord:
    payload = event.payload
    model_call, tool_call = payload.get("model_call") or {}, payload.get("tool_call") or {}
    return EventRecord(
        event.workspace_id,
        event.seq,
        event.type,
        event.task_id,
        status=payload.get("status"),
        forced=payload.get("forced", False),
        iterations=payload.get("iterations", 0),
        iteration_lost=payload.get("iteration_lost", False),
        number=payload.get("number", 0),
        is_model_call_interrupted=model_call.get("status") == "interrupted",
        is_tool_call_interrupted=tool_call.get("result", {}).get("status") == "interrupted",
        has_tool_call=bool(tool_call),
    )


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None
