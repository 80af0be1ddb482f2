"""The store in memory, with faults that a test can turn on."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from evershell.core.errors import UnavailableError
from evershell.core.ports import Clock, Store
from evershell.store.memory.memory_store import MemoryStore

METHODS = frozenset(name for name in dir(Store) if not name.startswith("_"))


class FaultyStore(MemoryStore):
    """A store whose methods all raise UnavailableError while `unavailable` is true.

    If `error` is set, every method raises `error()`.
    """

    def __init__(self, clock: Clock = lambda: datetime.now(UTC)) -> None:
        super().__init__(clock)
        self.unavailable = False
        self.error: Callable[[], BaseException] | None = None
        # The result of `worker_silences`.
        self.silences: list[float] = [0.0]

    def begin(self) -> None:
        """Every method calls this when it begins."""
        if self.unavailable:
            raise UnavailableError("the fake database is down")
        if self.error is not None:
            raise self.error()

    async def worker_silences(self) -> Sequence[float]:
        self.begin()
        return self.silences


def _with_faults(name: str) -> Callable[..., Awaitable[Any]]:
    async def call(self: FaultyStore, *arguments: Any, **named: Any) -> Any:
        self.begin()
        return await getattr(MemoryStore, name)(self, *arguments, **named)

    return call


for _name in METHODS - vars(FaultyStore).keys():
    setattr(FaultyStore, _name, _with_faults(_name))
