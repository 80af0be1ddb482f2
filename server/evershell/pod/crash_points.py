"""Crash points: places at which tests make a program kill itself.

Only the composition roots use this module, and only if tests have set FOLDER. Other code does not
know of crash points.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from evershell.core.task import AgentEvent, IterationCompleted, IterationReported, TaskEnded

# The folder of the files that arm the points. Empty, except in tests.
FOLDER = ""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class CrashPoints:
    """The crash points of a program. A file in the folder arms the point with the same name.

    A point fires once, so a restarted program survives it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reach(self, point: str) -> None:
        """Kills this process if the point is armed.

        If several processes reach the point at the same time, only one of them is killed.
        """
        try:
            (self._folder / point).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
        # The init process of a PID namespace ignores a SIGKILL from itself.
        os._exit(128 + signal.SIGKILL)

    def around(
        self, name: str | Callable[P, str], call: Callable[P, Awaitable[R]]
    ) -> Callable[P, Awaitable[R]]:
        """Wraps a call in the points `before_<name>` and `after_<name>`.

        A call that fails does not reach `after_<name>`; a call that is cancelled does. If `name`
        is a function, it computes the name from the arguments of the call.
        """

        async def between_points(*args: P.args, **kwargs: P.kwargs) -> R:
            point = name if isinstance(name, str) else name(*args, **kwargs)
            self.reach(f"before_{point}")
            try:
                result = await call(*args, **kwargs)
            except asyncio.CancelledError:
                # The commit may have taken effect: the agent cancels the call if the reply to a
                # heartbeat shows that the task has ended.
                self.reach(f"after_{point}")
                raise
            self.reach(f"after_{point}")
            return result

        return between_points

    def around_reply(
        self, name: str, method: Callable[[Any, Any], Awaitable[R]]
    ) -> Callable[[Any, Any], Awaitable[R]]:
        """Wraps a servicer's method in the points `before_<name>` and `after_<name>`.

        `before_<name>` is reached when the reply is complete, and `after_<name>` when the call has
        ended.
        """

        async def until_replied(request: Any, context: Any) -> R:
            context.add_done_callback(lambda _: self.reach(f"after_{name}"))
            reply = await method(request, context)
            self.reach(f"before_{name}")
            return reply

        return until_replied

    def armed(self, target: T, **names: str | Callable[..., str]) -> T:
        """A proxy of the target. `names` maps each wrapped method to the name of its points."""
        return replaced(
            target,
            **{
                method: self.around(name, getattr(target, method)) for method, name in names.items()
            },
        )


def replaced(target: T, **methods: Callable[..., Awaitable[Any]]) -> T:
    """A proxy of the target that replaces these methods."""
    return cast(T, _Replaced(target, methods))


class _Replaced:
    def __init__(self, target: object, methods: dict[str, Callable[..., Awaitable[Any]]]) -> None:
        self._target = target
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def kind_of(events: Sequence[AgentEvent]) -> str:
    """The kind of a commit.

    `terminal` if it contains the end of the task, else `iteration` if it contains an iteration,
    else `report` if it reports a running iteration, else `start`.
    """
    if any(isinstance(event, TaskEnded) for event in events):
        return "terminal"
    if any(isinstance(event, IterationCompleted) for event in events):
        return "iteration"
    if any(isinstance(event, IterationReported) for event in events):
        return "report"
    return "start"
