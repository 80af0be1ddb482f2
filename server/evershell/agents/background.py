"""Synchronous code of an agent: in a thread, or in its own process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from evershell.agents.own_keys import keys

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the function in a thread.

    A thread cannot be interrupted: this call ends only when the function returns, even if the call
    is cancelled. If that takes too long after a forced cancellation, the control plane ends the
    pod.
    """
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait({call})
        # Retrieves the exception, so that asyncio does not log it.
        call.exception()
        raise


async def in_process(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the function in its own process, which is killed if this call is cancelled.

    The function, its arguments and its result are pickled, so the function must be defined at
    the top level of a module. Raises what the function raises, RuntimeError if the outcome cannot
    be pickled, and ChildProcessError if the process ends without a result.
    """
    # Imported here, because most agents do not need it.
    import pickle

    parts = keys, _surroundings(), (function, args, kwargs)
    call = b"".join(map(pickle.dumps, parts))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "evershell.agents.child"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    try:
        output, _ = await process.communicate(call)
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if not output:
        raise ChildProcessError(f"the process ended with {process.returncode} and no result")
    result, error = pickle.loads(output)  # noqa: S301 - from our own process
    if error is not None:
        raise error
    return cast("T", result)


def _surroundings() -> dict[str, Any]:
    """The data that multiprocessing.spawn.prepare needs so that the process can import the
    function.
    """
    surroundings: dict[str, Any] = {"sys_path": sys.path}
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        surroundings["init_main_from_name"] = main.__spec__.name
    # `python -c` and an interactive interpreter have no file.
    elif (path := getattr(main, "__file__", None)) is not None:
        surroundings["init_main_from_path"] = str(Path(path).absolute())
    return surroundings
