"""What the programs of a stack hold: open files and unshared memory (USS)."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.stack import Stack

# How long programs may take to close the connections of callers that have left.
_SETTLE_SECONDS = 20.0
_POLL_SECONDS = 0.5
_QUIET_POLLS = 4
# How much memory the largest process of a program may gain.
MEMORY_MIB = 6.0
# Envoy's heap does not return the memory of closed connections at once. Two runs of 20,000 calls
# differed by 4 MiB.
_MEMORY_MIB_OF = {"envoy": 12.0}
# How many open files a program may gain. Only its process with the most open files counts.
OPEN_FILES = 8
# PostgreSQL keeps files open after use, up to max_files_per_process (1000 by default).
_OPEN_FILES_OF = {"postgres, a connection": 200, "postgres, background": 200}
# The number of these processes may grow: it depends on how many calls ran concurrently.
_POOLED = "postgres, a connection"


@dataclass(frozen=True, slots=True)
class Holding:
    """The number of processes of a program, and the most that any one of them holds."""

    processes: int
    open_files: int
    memory_mib: float


Holdings = Mapping[str, Holding]


def settled(stack: Stack) -> Holdings:
    """Returns the holdings once the number of open files has not changed for two seconds.

    Waits at most _SETTLE_SECONDS.
    """
    until = time.monotonic() + _SETTLE_SECONDS
    last, quiet_polls = holdings(stack), 0
    while quiet_polls < _QUIET_POLLS and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        now = holdings(stack)
        quiet_polls = quiet_polls + 1 if _files(now) == _files(last) else 0
        last = now
    return last


def _files(of_all: Holdings) -> dict[str, int]:
    return {program: holding.open_files for program, holding in of_all.items()}


def holdings(stack: Stack) -> Holdings:
    """Returns what each program holds now."""
    up = psutil.Process(stack.pid)
    processes: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for process in (up, *up.children(recursive=True)):
        with suppress(psutil.Error, IndexError):
            memory = process.memory_full_info().uss / 2**20
            processes[_program(process)].append((process.num_fds(), memory))
    return {
        program: Holding(len(each), max(files for files, _ in each), max(mib for _, mib in each))
        for program, each in sorted(processes.items())
    }


def _program(process: psutil.Process) -> str:
    command = process.cmdline()
    if "evershell.agents" in command:
        return "agent"
    if "evershell.commands" in command:
        return {"up": "up", "serve": "worker", "fleet": "fleet"}[
            command[command.index("evershell.commands") + 1]
        ]
    if command[0].startswith("postgres:"):
        return "postgres, a connection" if "[local]" in command[0] else "postgres, background"
    return Path(command[0]).name


def grown_files(before: Holdings, after: Holdings) -> Iterator[str]:
    """Yields a line for each program with too many new open files, or with new processes."""
    for program, now in after.items():
        was = before.get(program, _NOTHING)
        allowed = _OPEN_FILES_OF.get(program, OPEN_FILES)
        if now.open_files > was.open_files + allowed:
            yield (
                f"{program}: {was.open_files} → {now.open_files} open files, "
                f"{allowed} more are allowed"
            )
        if now.processes > was.processes and program != _POOLED:
            yield f"{program}: {was.processes} → {now.processes} processes"


def grown_memory(before: Holdings, after: Holdings) -> Iterator[str]:
    """Yields a line for each program whose memory has grown too much."""
    for program, now in after.items():
        was = before.get(program, _NOTHING)
        allowed = _MEMORY_MIB_OF.get(program, MEMORY_MIB)
        if now.memory_mib > was.memory_mib + allowed:
            yield (
                f"{program}: {was.memory_mib:.1f} → {now.memory_mib:.1f} MiB, "
                f"{allowed:g} more are allowed"
            )


def table(before: Holdings, after: Holdings) -> Iterator[str]:
    """Yields a header, then one line for each program."""
    yield f"{'program':24} processes   open files   memory, MiB"
    for program in sorted(before.keys() | after.keys()):
        was, now = before.get(program, _NOTHING), after.get(program, _NOTHING)
        yield (
            f"{program:24} {was.processes:4} → {now.processes:<4} "
            f"{was.open_files:4} → {now.open_files:<5} "
            f"{was.memory_mib:6.1f} → {now.memory_mib:<6.1f}"
        )


_NOTHING = Holding(0, 0, 0.0)
