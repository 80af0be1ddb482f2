"""The faults of an agent and of its link to the control plane."""

from enum import Enum


class Link(Enum):
    """How the agent reaches the control plane."""

    GOOD = "good"
    REQUESTS_LOST = "requests are lost"
    REPLIES_LOST = "replies are lost"


class Fault(Enum):
    """A defect of an agent that renews its lease all the same. It lasts as long as the process."""

    # It stops committing.
    COMMITS_NOTHING = "commits nothing"
    # It commits nothing, and its heartbeats name no task.
    FORGETS_ITS_TASK = "forgets its task"
    # It commits nothing, and its heartbeats name an earlier task.
    NAMES_ANOTHER_TASK = "names another task"
    # Its work on the next task raises.
    BREAKS = "breaks"
