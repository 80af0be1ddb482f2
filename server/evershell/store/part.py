"""What the parts of PostgresStore have in common."""

from collections.abc import Callable

from evershell.core.change import Change
from evershell.core.ports import Clock
from evershell.store.pool import Pool
from evershell.store.publish import Publish, publish_to_nobody


class Part:
    """The methods of one subject. PostgresStore inherits all parts, which share these fields."""

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        publish: Publish = publish_to_nobody,
        committed: Callable[[Change], None] = lambda change: None,
        cancelled: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`publish` is called after each commit that others may wait for.

        `committed` is called after each transition, and `cancelled` with the number of tasks that
        each batch has cancelled.
        """
        self._pool = pool
        self._clock = clock
        self._publish = publish
        self._committed = committed
        self._cancelled = cancelled
