"""The synchronous calls of an emergency: cancel all tasks, put the organization on hold."""

from collections.abc import Iterator

from evershell.client import _calls
from evershell.client._client import Caller
from evershell.client._fields import Seconds
from evershell.client._waiting import RemainingPauses
from evershell.client.types import CancelTasksResult, Hold, HoldResult, TaskFilter


class EmergencyCalls(Caller):
    """The calls about the whole organization."""

    def cancel_tasks(
        self,
        *,
        filter: TaskFilter | None = None,  # noqa: A002 - the name of the field
        all: bool = False,  # noqa: A002 - the name of the field
        reason: str = "",
        force_after: Seconds | None = None,
        dry_run: bool = False,
    ) -> CancelTasksResult:
        """Cancels the tasks of the caller's organization that match and have not ended.

        Give either `filter` or `all`: a call with neither, with both or with an empty filter is
        refused.

        At most 1,000 tasks, the oldest first: call again until `remaining` is 0, or use
        `cancel_all_tasks`. With `:own` permissions, only tasks in the caller's workspaces match.

        Args:
            filter: Which tasks.
            all: Every task.
            reason: Human-readable; at most 500 characters. Recorded in the tasks and their events.
            force_after: Interrupts iterations that still run this long after the call: 0 to 86,400
                seconds. None interrupts no iteration.
            dry_run: Counts the tasks and cancels none.

        Returns:
            The counts, and the outcome for each task.

        Raises:
            CallError: The call has failed. After UnavailableError, some of the tasks may be
                cancelled; the call can be repeated without harm.
        """
        return self._call(_calls.cancel_tasks(filter, all, reason, force_after, dry_run))

    def cancel_all_tasks(
        self,
        *,
        filter: TaskFilter | None = None,  # noqa: A002 - the name of the field
        all: bool = False,  # noqa: A002 - the name of the field
        reason: str = "",
        force_after: Seconds | None = None,
    ) -> Iterator[CancelTasksResult]:
        """Repeats `cancel_tasks` until nothing remains.

        Args:
            filter: Which tasks.
            all: Every task.
            reason: Human-readable; at most 500 characters.
            force_after: As for `cancel_tasks`.

        Returns:
            An iterator over the results of the calls. Each call is made when its result is asked
            for.

        Raises:
            CallError: As for `cancel_tasks`. Raised by the iteration.
        """
        pauses = RemainingPauses()
        while True:
            result = self.cancel_tasks(
                filter=filter, all=all, reason=reason, force_after=force_after
            )
            yield result
            if not result.remaining:
                return
            self._sleep(pauses.after(result))

    def hold(self, *, reason: str = "", cancel_running: bool = False) -> HoldResult:
        """Puts the caller's organization on hold: it gets no new task and no new agent.

        Tasks that run go on, unless they are to be cancelled; cancelling, stopping and reading
        work. A hold in force does not change. Needs the scope `org:hold`.

        Args:
            reason: Human-readable; at most 500 characters. The refused calls show it.
            cancel_running: Cancels all tasks that have not ended, which also needs the scope
                `workspace:write`. If tasks remain, call again.

        Returns:
            The hold in force, with its first caller, time and reason, and what was cancelled.

        Raises:
            CallError: The call has failed.
        """
        return self._call(_calls.hold(reason, cancel_running))

    def release(self) -> Hold:
        """Ends the hold of the caller's organization. Needs the scope `org:hold`.

        Returns:
            The hold, which is not in force.

        Raises:
            CallError: The call has failed.
        """
        return self._call(_calls.release())

    def get_hold(self) -> Hold:
        """Reads whether the caller's organization is on hold.

        Returns:
            The hold; `on_hold` says whether it is in force.

        Raises:
            CallError: The call has failed.
        """
        return self._call(_calls.get_hold())
