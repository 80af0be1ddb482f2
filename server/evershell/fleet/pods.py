"""The ports of the controller: pods, and the changes of workspaces."""

from typing import Protocol

from evershell.core.workspace import Workspace


class Changes(Protocol):
    """Publishes changes of workspaces that the controller must act on (`awaits_controller`)."""

    async def wait(self, timeout_seconds: float) -> set[str]:
        """Returns the ids of the workspaces that have changed since the last call.

        The set is empty after the timeout. It may contain ports.UNDELIVERED.
        """


class Pods(Protocol):
    """Starts and ends the pods of workspaces.

    A pod belongs to one epoch of its workspace. `workspace.epoch` and `workspace.run_id` name the
    pod that a method is about.
    """

    async def sync(self) -> None:
        """Returns when the other methods know what earlier controllers have done.

        Called at the start of each term of leadership. Returns even if this cannot be known now. An
        unknown pod then counts as started and alive.
        """

    def was_started(self, workspace: Workspace) -> bool:
        """Whether the pod was started in this run of the stack, by any controller."""

    def has_never_run(self, workspace_id: str) -> bool:
        """Whether no pod of the workspace was ever started. False if that is not certain."""

    async def start(self, workspace: Workspace) -> None:
        """Starts the pod. `workspace.run_id` is set. Raises OSError."""

    async def wait_exit(self, workspace: Workspace) -> None:
        """Returns when the agent of the pod has ended, at once if it does not run.

        Also returns soon after the files of the workspace are gone.
        """

    def is_alive(self, workspace: Workspace) -> bool:
        """Whether the agent of the pod runs and its files are in place."""

    def has_files(self, workspace_id: str) -> bool:
        """Whether the files of the workspace are in place. A tool may have removed them."""

    def log_tail(self, workspace_id: str) -> str:
        """The last line of the log of the workspace's agents; empty if there is none.

        While an agent runs, it may be empty.
        """

    def explain(self, workspace: Workspace) -> str:
        """Why the agent of the pod has ended or does not start, as a human-readable clause.

        Empty if the backend does not know.
        """

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        """Ends everything that runs in the pod and in the workspace's earlier pods, tools too.

        Asks the agent to end, and after the grace kills whatever still runs. A grace of 0 kills as
        soon as the backend can. Leaves pods of later epochs alone. Returns whether everything is
        known to have ended: this may be unknown if another controller started the pod, if the
        running pod had another epoch, or if its machine does not answer. Once a later pod has run,
        an earlier pod whose end was unknown no longer counts.
        """

    async def remove(self, workspace_id: str) -> bool:
        """Removes the files of a workspace whose pods have ended, with everything else it has here.

        Returns whether nothing is left. If something is, it may be removed later without a further
        call. Any controller may repeat the call.
        """
