"""Lists that read a bounded number of rows, whatever their filter is.

A page reads at most MAX_ROWS rows of one key from an index, newest first, and then filters them. It
may therefore have fewer items than its limit, or none, and says where the next page continues.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from evershell.core.validation import HasId, Listed
from evershell.store.pool import Connections, fetch_all
from evershell.store.statements import statements

# PostgreSQL reads this many rows in about 5 ms.
MAX_ROWS = 1_000
# Sorts after every id, because no id contains a tilde.
AFTER_ALL_IDS = "~"
SQL = statements("scans", max_rows=MAX_ROWS)

Item = TypeVar("Item", bound=HasId)


async def listed(
    pool: Connections, query: str, item_of: Callable[[Any], Item], **parameters: Any
) -> Listed[Item]:
    """The items that the query finds. Raises UnavailableError and Failure rate_limited.

    The query ends with the part `page` of scans.sql.
    """
    rows = await fetch_all(pool, query, **parameters)
    return Listed([item_of(row) for row in rows if row.matches], rows[-1].last_id if rows else None)
