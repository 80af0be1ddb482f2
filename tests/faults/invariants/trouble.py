"""The faults of an agent and of its link to the control plane."""

from enum import Enum


class Link(Enum):
    """The state of the link from the agent to the control plane."""

    GOOD = "good"
    REQUESTS_LOST = "requests are lost"
    REPLIES_LOST = "replies are lost"


class Fault(Enum):
    """A defect of an agent that still renews its lease. It lasts until the process ends."""

    # The agent stops committing.
    COMMITS_NOTHING = "commits nothing"
    # The agent commits nothing, and its heartbeats name no task.
    FORGETS_ITS_TASK = "forgets its task"
    # The agent commits nothing, and its heartbeats name an earlier task.
    NAMES_ANOTHER_TASK = "names another task"
    # Every commit of the agent raises an error.
    BREAKS = "breaks"
