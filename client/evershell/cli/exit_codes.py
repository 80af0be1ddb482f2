"""The exit codes of the commands that call the service.

This module imports no other module of the package: `evershell --help` loads it to print the table.
"""

from enum import IntEnum

TABLE = """\b
Exit codes:
    0  done; cancel: the cancellation is recorded, with --wait the task has ended
    1  an internal error, or there is no address or credential to call with
    2  the command line is not valid
    3  cancel: nothing to cancel, because no task runs or the task had ended
    4  recorded and will be delivered, but the agent could not be reached;
       submit: the task has ended delivery_failed
    5  refused because of the request, the credential, or the state of the
       workspace or the organization; or not confirmed
    6  the service is unavailable or too slow, or a rate limit was exceeded
    7  the task did not end within --wait; a cancellation stays recorded
    8  submit --wait, watch --task: the task has ended, but is not completed
  130  ended with Ctrl-C; a cancellation that is recorded stays recorded
"""


class ExitCode(IntEnum):
    """The exit codes of TABLE. click itself exits with 1 and 2."""

    DONE = 0
    DEFECT = 1
    NOTHING_TO_CANCEL = 3
    AGENT_UNREACHABLE = 4
    REFUSED = 5
    UNAVAILABLE = 6
    NOT_ENDED = 7
    NOT_COMPLETED = 8
    INTERRUPTED = 130
