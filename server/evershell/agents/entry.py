"""The start of an agent's process: reads the spec, and runs the program."""

import importlib
import inspect
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from evershell.agents import own_keys
from evershell.imports import without_collection

if TYPE_CHECKING:
    from evershell.agents.loop import AgentFunction


# Whether the agent's program is only imported, not run as a script: `run` then does nothing.
is_imported = False


def run(agent: "AgentFunction") -> None:
    """Runs the agent of this process, and then ends the process. Call it last in your program.

    The control plane has started the process, with a spec on its standard input.
    """
    if not is_imported:
        end(main(agent))


class NoAgentError(Exception):
    """The named agent cannot be loaded. The text says why."""


def load(name: str) -> "AgentFunction":
    """Imports the agent `file.py:name` or `module:name`. Raises NoAgentError."""
    global is_imported
    place, _, attribute = name.rpartition(":")
    module = place
    if place.endswith(".py"):
        path = Path(place).absolute()
        if not os.access(path, os.R_OK):
            raise NoAgentError(
                f"{path} cannot be read in the pod. Its sandbox shows /usr, the environment of "
                "Python and the folders of the files that AGENT_COMMAND names by absolute paths. "
                "Let other users read the file, or set POD_ISOLATION=none."
            )
        sys.path.insert(0, str(path.parent))
        module = path.stem
    if not place or not attribute:
        raise NoAgentError(f"{name!r} is not `file.py:name` or `module:name`.")
    is_imported = True
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:
        raise NoAgentError(f"{name}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise NoAgentError(f"{place} has no function {attribute!r}.")
    function: AgentFunction = found
    return function


def _require_async(agent: "AgentFunction") -> None:
    """Raises NoAgentError if the agent is a function that is not `async`."""
    function = inspect.unwrap(agent)
    if inspect.isfunction(function) and not inspect.iscoroutinefunction(function):
        name = function.__name__
        raise NoAgentError(
            f"The function {name!r} is not async. Write `async def {name}(task: Task)`, and run "
            "code that blocks with `in_thread` or `in_process`."
        )


def end(code: int) -> NoReturn:
    """Ends this process, even if threads and tasks that the agent has started still run."""
    for stream in (sys.stdout, sys.stderr):
        # The agent may have closed or replaced the stream.
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def _restore_signals() -> None:
    """Resets the signal handlers in a forked child: its signals would otherwise end the agent."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def prepare() -> None:
    """Imports what every agent needs.

    Starts no thread and no part of gRPC, so the process can fork.
    """
    # As in evershell.cli.main: gRPC's C library logs nothing and installs no fork handlers.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    with without_collection():
        import evershell.agents.program
        import evershell.telemetry.logs  # noqa: F401 - for `main`


def main(agent: "AgentFunction | None" = None, name: str = "") -> int:
    """Runs a function, the named agent, or the agent of the spec. Returns the exit code."""
    prepare()
    import asyncio

    from evershell.agents.program import run, with_secrets
    from evershell.agents.shutdown import ExitCode
    from evershell.pod.spec import PodSpec
    from evershell.telemetry import logs

    # Lifts the memory limit that is inherited from the controller, because tools may need more
    # memory than that limit allows.
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        spec = PodSpec.read(json.load(sys.stdin))
    except (ValueError, TypeError) as error:
        sys.stderr.write(f"The spec on standard input is not valid: {error}.\n")
        return ExitCode.BAD_SPEC
    log = logs.configure_plain("agent", workspace_id=spec.workspace_id, epoch=spec.epoch)
    if agent is not None or name:
        completed = asyncio.run(with_secrets(spec, log))
        if completed is None:
            return ExitCode.UNAUTHORIZED
        spec = completed
        log.redact = own_keys.redacted
        own_keys.hide(spec.keys)
        try:
            agent = agent or load(name)
            _require_async(agent)
        except NoAgentError as error:
            if error.__cause__ is not None:
                log.exception("agent_not_loaded")
            # The last line is short and has the reason, because the controller quotes it, and may
            # get only the end of the log.
            log.error("no_agent", reason=str(error))
            return ExitCode.BAD_SPEC
    # The library needs asyncio's own event loop, even if the agent has installed another one.
    asyncio.set_event_loop_policy(None)
    if sys.version_info < (3, 12):
        # The default of Python 3.12. The default of 3.11 starts a thread for each process of a
        # tool, and reports the end of the process later.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    os.register_at_fork(after_in_child=_restore_signals)
    # The loop is not closed, because closing waits for everything that a function has left running.
    loop = asyncio.Runner().get_loop()
    program = loop.create_task(run(spec, log, agent))
    while not program.done():
        # If an asyncio task calls `sys.exit`, the loop stops with that exception and is run again.
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(program)
    return program.result()
