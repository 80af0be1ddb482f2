"""Makes the caller's deadline known to the core."""

from typing import Any

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.core import deadline


class Deadline(Interceptor):
    """Sets the deadline that waits for the database and for agents are bounded by."""

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        async def bounded(call: Call) -> Any:
            left_seconds = call.context.time_remaining()
            if left_seconds is not None:
                deadline.begin(left_seconds)
            return await proceed(call)

        return bounded
