"""The asynchronous calls of an emergency: hold and release the organization."""

from evershell.client import _calls
from evershell.client._async_client import AsyncCaller
from evershell.client.types import Hold


class AsyncEmergencyCalls(AsyncCaller):
    """The calls about the whole organization."""

    async def hold(self, *, reason: str = "") -> Hold:
        """Puts the caller's organization on hold: it gets no new task and no new agent.

        Tasks that run go on; cancelling, stopping and reading work. A call changes nothing while
        the organization is on hold. Needs the scope `org:hold`.

        Args:
            reason: For people; at most 500 characters. The refused calls show it.

        Returns:
            The hold in force, with its first caller, time and reason.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(_calls.hold(reason))

    async def release(self) -> Hold:
        """Ends the hold of the caller's organization. Needs the scope `org:hold`.

        Returns:
            The hold, which is not in force.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(_calls.release())

    async def get_hold(self) -> Hold:
        """Reads whether the caller's organization is on hold.

        Returns:
            The hold; `on_hold` says whether it is in force.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(_calls.get_hold())
