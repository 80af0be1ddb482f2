"""What a store says about a change that it has committed."""

from typing import Protocol


class Announce(Protocol):
    """Announces a committed change of a workspace. Returns at once."""

    def __call__(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        """Announces the change to those who wait for it.

        `watched` says whether other processes may have subscribers for the workspace; `reconcile`,
        whether the fleet controller has to act on the change without delay.
        """


def announce_to_nobody(workspace_id: str, *, watched: bool, reconcile: bool) -> None:
    """For a store whose changes nobody waits for."""
