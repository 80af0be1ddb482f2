"""The ports of the controller: pods, and the changes of workspaces."""

from typing import Protocol

from evershell.core.workspace import Workspace


class Changes(Protocol):
    """Reports changes of workspaces that the controller must act on (`awaits_controller`)."""

    async def wait(self, timeout_seconds: float) -> set[str]:
        """Returns the ids of the workspaces that have changed since the last call.

        Returns an empty set after the timeout. The set may contain ports.UNDELIVERED.
        """


class Pods(Protocol):
    """Starts and ends the pods of workspaces.

    A pod belongs to one epoch of its workspace. `workspace.epoch` and `workspace.run_id` name the
    pod that a method is about.
    """

    async def sync(self) -> None:
        """Finds out what earlier controllers have done. Called when a term of leadership starts.

        Also returns if this cannot be found out now. Each unknown pod then counts as started and
        alive.
        """

    def was_started(self, workspace: Workspace) -> bool:
        """Whether the pod was started in this run of the stack, by any controller."""

    def has_never_run(self, workspace_id: str) -> bool:
        """Whether no pod of the workspace was ever started. False if that is not certain."""

    async def start(self, workspace: Workspace) -> None:
        """Starts the pod. `workspace.run_id` must be set. Raises OSError."""

    async def wait_exit(self, workspace: Workspace) -> None:
        """Waits until the agent of the pod has ended. Returns at once if it does not run.

        Also returns soon after the files of the workspace are gone.
        """

    def is_alive(self, workspace: Workspace) -> bool:
        """Whether the agent of the pod runs and its files are in place."""

    def has_files(self, workspace_id: str) -> bool:
        """Whether the files of the workspace are in place. A tool may have removed them."""

    def log_tail(self, workspace_id: str) -> str:
        """The last line of the log of the workspace's agents; empty if there is none.

        It may also be empty while an agent runs.
        """

    def explain(self, workspace: Workspace) -> str:
        """Why the agent of the pod has ended or does not start, as a human-readable clause.

        Empty if the backend does not know.
        """

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        """Ends everything in the pod and in the workspace's earlier pods, including tools.

        Asks the agent to end, and after the grace period kills whatever still runs. With a grace
        period of 0, kills as soon as the backend can. Does not touch pods of later epochs. Returns
        whether everything is known to have ended. This may be unknown if another controller started
        the pod, if the running pod had another epoch, or if the pod's machine does not answer. An
        earlier pod whose end is unknown is ignored once a later pod has run.
        """

    async def remove(self, workspace_id: str) -> bool:
        """Removes all data that the backend has of a workspace whose pods have ended.

        This includes the workspace's files. Returns whether nothing is left. What is left may be
        removed later without a further call. Any controller may repeat the call.
        """
