"""Runs a worker or a fleet controller on an event loop that reports slow callbacks.

`python -m tests.bench.long.watched_program PORT PROGRAM REPORT`, with the environment of the
program. PROGRAM is `serve` or `fleet`; only `serve` uses the port.

A callback is slow if it uses more than SLOW_SECONDS of processor time. asyncio's own log of slow
callbacks measures wall time, which on a shared machine is often the time of other processes. Its
debug mode also makes every callback slower, and uvloop does not measure callbacks of sockets. A
callback that sleeps is not found.
"""

import asyncio
import gc
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from evershell.app import programs
from evershell.app.settings import Settings

SLOW_SECONDS = 0.2
_SAMPLE_SECONDS = 0.002


class Watch:
    """Measures the callbacks of one event loop, which runs in the thread that makes the watch.

    Writes a line of JSON for each slow one: when it ended (CLOCK_MONOTONIC), its processor time,
    the part of that in the garbage collector, and a stack sampled while it was slow.
    """

    def __init__(self, report: Path) -> None:
        self._report = report.open("a", buffering=1)
        self._thread_id = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread_id)
        # The processor time at which the running callback began; None between callbacks.
        self._began: float | None = None
        self._stack: list[str] = []
        self._collector_began = self._collector_seconds = 0.0
        gc.callbacks.append(self._collecting)
        threading.Thread(target=self._sample, daemon=True).start()

    def measured(self, callback: Callable[..., object]) -> Callable[..., object]:
        """The callback, measured when it runs."""

        def run(*args: object) -> object:
            self._collector_seconds = 0.0
            self._began = began = time.thread_time()
            try:
                return callback(*args)
            finally:
                used = time.thread_time() - began
                self._began = None
                if used > SLOW_SECONDS:
                    self._write(callback, used)

        return run

    def _write(self, callback: Callable[..., object], used: float) -> None:
        slow = {
            "ended": time.monotonic(),
            "seconds": round(used, 4),
            "collector_seconds": round(self._collector_seconds, 4),
            "callback": repr(callback),
            "stack": self._stack,
        }
        self._report.write(json.dumps(slow) + "\n")
        self._stack = []

    def _sample(self) -> None:
        """Keeps the stack of a callback that has become slow."""
        while True:
            time.sleep(_SAMPLE_SECONDS)
            began = self._began
            if began is None or time.clock_gettime(self._clock) - began < SLOW_SECONDS / 2:
                continue
            frame = sys._current_frames().get(self._thread_id)
            stack = traceback.format_list(traceback.extract_stack(frame))
            if self._began == began:
                self._stack = stack

    def _collecting(self, phase: str, _: dict[str, int]) -> None:
        if threading.get_ident() != self._thread_id:
            return
        if phase == "start":
            self._collector_began = time.thread_time()
        else:
            self._collector_seconds += time.thread_time() - self._collector_began


class WatchedLoop(uvloop.Loop):
    """uvloop, with every callback that Python code schedules measured."""

    # The types of the arguments are those of the overridden methods, which check them.

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return super().call_soon(self._watch.measured(callback), *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return super().call_soon_threadsafe(self._watch.measured(callback), *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return super().call_later(delay, self._watch.measured(callback), *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return super().call_at(when, self._watch.measured(callback), *args, context=context)

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        super().add_reader(fd, self._watch.measured(callback), *args)

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        super().add_writer(fd, self._watch.measured(callback), *args)


def main(port: int, program: str, report: Path) -> None:
    """Runs the program until SIGTERM."""
    settings = Settings.read()
    watch = Watch(report)
    with asyncio.Runner(loop_factory=lambda: WatchedLoop(watch)) as runner:
        if program == "fleet":
            runner.run(programs.fleet(settings))
        else:
            runner.run(programs.serve(settings, port))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
