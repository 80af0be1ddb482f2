"""`python -m evershell.agents.child`: the process that `in_process` starts."""

import os
import pickle
import sys
from multiprocessing import spawn
from typing import Any

from evershell.agents import entry, own_keys
from evershell.pod.process import become_unreadable


def main() -> None:
    """Reads a call from standard input, and writes its result to standard output."""
    results = os.dup(1)
    # What the function prints goes to the log.
    os.dup2(2, 1)
    # The process receives the agent's keys, which other processes must not read.
    become_unreadable()
    entry.is_imported = True
    own_keys.hide(pickle.load(sys.stdin.buffer))  # noqa: S301 - from the agent
    spawn.prepare(pickle.load(sys.stdin.buffer))  # noqa: S301 - from the agent
    function, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the agent
    try:
        outcome: tuple[Any, BaseException | None] = function(*args, **kwargs), None
    except BaseException as error:  # noqa: BLE001 - raised in the agent
        outcome = None, error
    try:
        data = pickle.dumps(outcome)
        # Some exceptions can be pickled but not unpickled.
        pickle.loads(data)  # noqa: S301 - own data
    except Exception as error:  # noqa: BLE001 - raised in the agent
        problem = RuntimeError(f"{outcome[1] or outcome[0]!r} cannot be pickled: {error}")
        data = pickle.dumps((None, problem))
    with os.fdopen(results, "wb") as file:
        file.write(data)


if __name__ == "__main__":
    main()
