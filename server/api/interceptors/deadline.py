"""Makes the caller's deadline known to the core."""

from typing import Any

from server.api.interceptors.interceptor import Context, Details, Interceptor, Proceed
from server.core import deadline


class Deadline(Interceptor):
    """Sets the deadline that waits for the database and for agents are bounded by."""

    async def around(self, details: Details, context: Context, proceed: Proceed) -> Any:
        deadline.begin(context.time_remaining())
        return await proceed()
