"""Cancels one task after another under load."""

from contextlib import suppress
from typing import Any, Generic, TypeVar

from tests.stack.long.load import Caller, Load, RecordedError, UndeliveredError
from tests.support.service import ServiceWorkspace

# Short iterations let many tasks be cancelled.
SHORT = "\n".join(["sleep 0.1"] * 100)
# Long iterations make it likely that a caller waits for the end of a task when a worker ends.
LONG = "\n".join(["sleep 3"] * 100)


W = TypeVar("W", bound=ServiceWorkspace)


class Canceller(Generic[W]):
    """Submits, reads and cancels tasks, one after another. Each task must end `cancelled`."""

    def __init__(
        self,
        load: Load,
        what: str,
        caller: Caller,
        workspace: W,
        description: str,
        **cancel: str,
    ) -> None:
        self.workspace = workspace
        self.ended = 0
        self._load, self._what, self._caller = load, what, caller
        self._description, self._cancel = description, cancel
        load.repeat(what, self._step)

    def _step(self) -> None:
        try:
            submitted = self._call("SubmitTask", description=self._description)
        except UndeliveredError:
            return
        if submitted is None and self.workspace.get()["status"] == "idle":
            return
        task_id = self.workspace.get()["current_task_id"]
        while self._read(task_id) in (None, "submitted", "delivered"):
            pass
        outcomes = {"accepted", "already_requested"}
        # The agent may answer too late on a busy machine.
        with suppress(RecordedError):
            while (cancelled := self._call("CancelTask", task_id=task_id, **self._cancel)) is None:
                # The call got no answer, but it may have taken effect.
                outcomes.add("already_finished")
            assert cancelled["outcome"] in outcomes, cancelled
        while (status := self._read(task_id)) in (None, "running"):
            pass
        assert status == "cancelled"
        self.ended += 1

    def _read(self, task_id: str) -> str | None:
        task = self._call("GetTask", task_id=task_id)
        return None if task is None else str(task["status"])

    def _call(self, rpc: str, **fields: str) -> dict[str, Any] | None:
        return self._load.call(
            self._what, self._caller, rpc, workspace_id=self.workspace.id, **fields
        )

    def assert_cancelled(self) -> None:
        """Checks that the tasks that ended are exactly the tasks with a recorded cancellation.

        Leaves out tasks that could not be delivered.
        """
        log = self.workspace.log()
        asked = [entry["task_id"] for entry in log if entry["type"] == "task_cancel_requested"]
        ended = [
            entry
            for entry in log
            if entry["type"] == "task_completed" and entry["status"] != "delivery_failed"
        ]
        # A workspace runs one task at a time, so tasks end in the order of their cancellations.
        assert [entry["task_id"] for entry in ended] == asked
        assert {entry["status"] for entry in ended} == {"cancelled"}
        assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
