"""What goes wrong with an agent, by itself or on its way to the control plane."""

from enum import Enum


class Link(Enum):
    """How the agent reaches the control plane."""

    GOOD = "good"
    REQUESTS_LOST = "requests are lost"
    REPLIES_LOST = "replies are lost"


class Fault(Enum):
    """A defect of an agent that renews its lease all the same. It lasts as long as the process."""

    # It commits nothing any more.
    COMMITS_NOTHING = "commits nothing"
    # It commits nothing, and its heartbeats name no task.
    FORGETS_ITS_TASK = "forgets its task"
    # It commits nothing, and its heartbeats name a task of earlier.
    NAMES_ANOTHER_TASK = "names another task"
    # Its work on the next task raises.
    BREAKS = "breaks"
