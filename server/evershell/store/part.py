"""The base class of the parts of PostgresStore."""

from collections.abc import Callable

from evershell.core.change import Change
from evershell.core.ports import Clock
from evershell.store.pool import Pool
from evershell.store.publish import Publish, publish_to_nobody


class Part:
    """A part of PostgresStore: the methods for one subject. All parts share these fields."""

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        publish: Publish = publish_to_nobody,
        committed: Callable[[Change], None] = lambda change: None,
        cancelled: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`publish` is called after each commit for which subscribers may be waiting.

        `committed` is called after each transition. `cancelled` is called with the number of
        intents that cancel_tasks, or cancel_tree for descendants, has recorded.
        """
        self._pool = pool
        self._clock = clock
        self._publish = publish
        self._committed = committed
        self._cancelled = cancelled
