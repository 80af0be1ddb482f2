"""What is true of every process of a pod, for the rooms that start such processes and for those
that end them.
"""

import ctypes

# In the environment of an agent, of its tools and of what they start, unless that clears it.
WORKSPACE_MARKER = "EVERSHELL_WORKSPACE_ID"
EPOCH_MARKER = "EVERSHELL_EPOCH"
# Only in the environment of an agent: the state folder of its stack.
STATE_DIR_MARKER = "EVERSHELL_STATE_DIR"

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """From here on a descendant whose parent ends becomes this process's own child, so that none
    gets out of sight.

    See PR_SET_CHILD_SUBREAPER in prctl(2): a new session, a cleared environment or a double fork
    change nothing about it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
