"""How a store publishes the changes that it has committed."""

from typing import Protocol


class Publish(Protocol):
    """Publishes a committed change of a workspace. Returns at once."""

    def __call__(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        """Publishes the change to its subscribers.

        `watched` says that other processes may have subscribers for the workspace. `reconcile` says
        that the fleet controller must act on the change without delay.
        """


def publish_to_nobody(workspace_id: str, *, watched: bool, reconcile: bool) -> None:
    """A `Publish` for a store whose changes have no subscribers."""
