"""What programs and rooms offer to each other."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from prometheus_client import CollectorRegistry

from evershell.api.handlers import Service
from evershell.core.caller import Caller
from evershell.core.event import Event, EventType, Origin
from evershell.core.event_feeds import EventFeeds
from evershell.core.ports import Agents, Clock, Sealing, Store, Subscriptions
from evershell.store.pool import Pool
from evershell.store.service_clock import ServiceClock

# A function that encodes an event. Returns the content type of the body, and the body.
Payload: TypeAlias = Callable[[Event], tuple[str, bytes]]
# A function that runs until it is cancelled.
Run: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWebhook:
    """A webhook that sends the events of one task to an address."""

    workspace_id: str
    task_id: str
    # The caller's id for the webhook, unique within the task.
    name: str
    url: str
    event_types: Sequence[EventType]
    # The form of the requests' bodies (registry.payloads).
    form: str
    # Further headers of the requests.
    headers: Mapping[str, str]


class TaskWebhooks(Protocol):
    """The webhooks of tasks, which the room `webhooks` offers to other rooms."""

    def check(self, wanted: TaskWebhook) -> None:
        """Raises Failure validation_error if the webhook cannot be created."""

    async def create(self, caller: Caller, wanted: TaskWebhook, origin: Origin) -> TaskWebhook:
        """Creates the webhook, or replaces the webhook with the same name.

        Earlier events of the task are sent too. Raises Failure, like CreateWebhook.
        """

    async def list_of_task(
        self, caller: Caller, workspace_id: str, task_id: str
    ) -> Sequence[TaskWebhook]:
        """The task's webhooks that the caller may read. Raises Failure."""

    async def delete(
        self, caller: Caller, workspace_id: str, task_id: str, name: str, origin: Origin
    ) -> None:
        """Deletes the webhook with this name. A repeat has no further effect. Raises Failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """The parts of a worker that a room may use."""

    # The settings of the server, which include the RoomSettings of every room.
    settings: object
    registry: CollectorRegistry
    pool: Pool
    clock: Clock
    store: Store
    agents: Agents
    subscriptions: Subscriptions
    feeds: EventFeeds
    sealing: Sealing
    find_org_slug: Callable[[str], Awaitable[str | None]]
    # Where callers reach the service.
    rest_url: str
    grpc_address: str
    model_without_price: str
    # None without the room `webhooks`.
    task_webhooks: TaskWebhooks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRoom:
    """What a room adds to a worker."""

    # The name of the room, for the log.
    name: str
    service: Service
    # Called when an event may have been committed. Must return at once.
    committed: Callable[[], None] | None = None
    run: Run | None = None
    task_webhooks: TaskWebhooks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramParts:
    """The parts of a worker's delivery process that a room may use."""

    settings: object
    pool: Pool
    clock: ServiceClock
    sealing: Sealing
    payloads: Mapping[str, Payload]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderParts:
    """The parts of a fleet controller that a room may use."""

    registry: CollectorRegistry
    pool: Pool
    clock: Clock
