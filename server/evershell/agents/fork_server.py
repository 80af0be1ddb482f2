"""`python -m evershell.agents.fork_server MODEL`: starts agents quickly (pod/fork_server.py)."""

import sys
from contextlib import suppress
from typing import NoReturn

from evershell.agents.entry import end, main, prepare
from evershell.pod.fork_server import serve


def _agent() -> NoReturn:
    end(main())


if __name__ == "__main__":
    prepare()
    if sys.argv[1].startswith("openai:"):
        # If the package is not installed, each agent reports that itself.
        with suppress(ModuleNotFoundError):
            import evershell.agents.openai_model  # noqa: F401 - for the agents
    serve(_agent)
