"""The rows of the database as they are committed, beside the record of all that happened."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from server.core.event import Event, EventType
from server.core.task import Task
from server.core.workspace import Workspace
from tests.invariants.record import Call, Iteration, Record
from tests.invariants.world import World


@dataclass(frozen=True, slots=True)
class View:
    """What is checked after a step."""

    world: World
    workspace: Workspace
    tasks: dict[str, Task]
    events: Sequence[Event]
    # By task.
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
