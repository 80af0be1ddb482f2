"""Refuses public calls while the worker cannot serve them."""

from typing import Any

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import PUBLIC_SERVICES
from evershell.core.errors import UnavailableError


class Readiness(Interceptor):
    """Answers `unavailable` at once while the worker is not ready.

    The edge calls workers that are not ready if no worker is: it cannot tell them from slow ones.
    Calls of agents are served, because they wait for the database anyway.
    """

    def __init__(self) -> None:
        self.is_ready = True

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        if method.service not in PUBLIC_SERVICES:
            return proceed

        async def admitted(call: Call) -> Any:
            if not self.is_ready:
                raise UnavailableError
            return await proceed(call)

        return admitted
