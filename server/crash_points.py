"""Points at which a program can be made to die, so that tests see what a crash there leaves behind.

Only the composition roots use this, and only when the setting `crash_points_dir` is set: else nothing is wrapped, and a
production path has not so much as a branch for it.
"""

import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from server.core.lifecycle import AgentEvent, Ending, Iterated

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class CrashPoints:
    """A point is armed by a file of its name in the folder. It works once: whatever is started again lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reach(self, point: str) -> None:
        """Kills this process if the point is armed. Of several that reach it at once, one dies."""
        try:
            (self._folder / point).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str | Callable[P, str], call: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """The call, with the points `before_<name>` and, unless it raises, `after_<name>`. The arguments may decide the name."""

        async def between_points(*args: P.args, **kwargs: P.kwargs) -> R:
            point = name if isinstance(name, str) else name(*args, **kwargs)
            self.reach(f"before_{point}")
            result = await call(*args, **kwargs)
            self.reach(f"after_{point}")
            return result

        return between_points

    def around_reply(self, name: str, method: Callable[[Any, Any], Awaitable[R]]) -> Callable[[Any, Any], Awaitable[R]]:
        """A servicer's method, with `before_<name>` when its reply is made, and `after_<name>` when the call is over."""

        async def until_replied(request: Any, context: Any) -> R:
            context.add_done_callback(lambda _: self.reach(f"after_{name}"))
            reply = await method(request, context)
            self.reach(f"before_{name}")
            return reply

        return until_replied

    def armed(self, target: T, **names: str | Callable[..., str]) -> T:
        """The target, with points around the methods that `names` maps to theirs."""
        return replaced(target, **{method: self.around(name, getattr(target, method)) for method, name in names.items()})


def replaced(target: T, **methods: Callable[..., Awaitable[Any]]) -> T:
    """What looks like the target, but for these methods."""
    return cast(T, _Replaced(target, methods))


class _Replaced:
    def __init__(self, target: object, methods: dict[str, Callable[..., Awaitable[Any]]]) -> None:
        self._target = target
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def kind_of(events: Sequence[AgentEvent]) -> str:
    """What an agent commits: `terminal` with the task's end, `iteration` with an iteration alone, else `start`."""
    if any(isinstance(happened, Ending) for happened in events):
        return "terminal"
    return "iteration" if any(isinstance(happened, Iterated) for happened in events) else "start"
