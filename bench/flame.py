"""`make flame`: shows where a worker spends its processor time in CancelTask.

Starts a stack, has 16 callers call CancelTask on one worker, and samples the worker's call stacks
with py-spy, including native code. The first run of py-spy draws the flame graph
`docs/flame.svg`. The second run is for the table in `docs/hot-path.md`. Every cancellation is
checked in the database.
"""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import environment, processes, windows
from bench.figures import Figures
from bench.servers.agent import AGENTS, addresses
from bench.side import Side
from tests.support.stack import ROOT
from tests.support.waiting import eventually

_CALLERS = 16
_SECONDS = 15
_WARM_UP_SECONDS = 3.0
_SAMPLES_A_SECOND = 100
_START_SECONDS = 30.0

_ENGINE, _LOOP, _LOG, _REST = "gRPC engine", "event loop", "log line", "rest"
_INTERCEPTORS = "interceptors"
# Maps each part to the beginnings of file names. A sample belongs to the part of its innermost
# frame whose file name begins with one of these texts. py-spy shortens a file name so that it
# begins with the topmost package, which is a folder with an `__init__.py`. The folder `evershell`
# has no such file.
_OWNERS = {
    "signal": (
        *("fleet/", "pod/", "auth/pod_tokens.py"),
        *("grpc/aio/_call.py", "grpc/aio/_channel.py"),
    ),
    "database path": ("store/", "psycopg", "libpq"),
    _LOG: ("api/interceptors/request_log.py", "telemetry/logs.py", "structlog/"),
    "codec": ("api/codec.py", "api/values.py", "api/payloads.py"),
    "servicer and use case": ("core/", "api/workspace_servicer.py"),
    _INTERCEPTORS: ("api/", "auth/"),
}
# If the table above matches no frame of a sample, the sample belongs to the part of its innermost
# frame that this table matches. So library code that a part calls counts for that part.
_LIBRARIES = {
    "codec": ("protobuf", "workspace/v1/", "agent/v1/"),
    _ENGINE: ("grpc",),
    _LOOP: ("uvloop", "asyncio", "_asyncio", "loop", "core.c", "linux.c", "queue.h", "stream.c"),
}
_FRAME = re.compile(r"^(?P<name>.*) \((?:server/evershell/|evershell/)?(?P<file>[^()]*?)(:\d+)?\)$")
# A thread in one of these functions is waiting and uses no processor time.
_WAITS = re.compile(r"^(epoll_p?wait|ppoll|poll|select|nanosleep|pthread_cond_\w*wait|sem_\w*wait)")
_ADDRESS, _LINE = re.compile(r"^0x[0-9a-f]+ \((.*)\)$"), re.compile(r":\d+\)$")
_PAGE = """\
<!-- Written by `make flame`. Do not edit up to the end mark. -->

# The hot path of CancelTask

Where a worker spends its processor time while {callers} callers cancel tasks, each one a task of
its own. py-spy has sampled the worker's stacks, native code included; samples of threads that wait
are left out.

Before the sampling began, the worker answered {per_second:.0f} calls a second and used
{cpu:.0f} µs of processor time for each. The shares come from {samples} samples, on {cores} cores
that other programs may have used too, with {versions}.

![Flame graph of CancelTask](flame.svg)

A sample belongs to the part of the innermost frame that has one: the JSON encoder belongs to the
log line if the log line calls it. Library code that no part calls belongs to the gRPC engine or
the event loop. The gRPC engine includes the system calls that receive a call and send its reply,
even where the interceptors call it.

| part | share | µs a call | where most samples end |
|---|---|---|---|
{rows}

{end}"""
_END = "<!-- The end of what `make flame` writes. -->"
_DOCUMENT = ROOT / "docs/hot-path.md"


def main() -> None:
    """Draws the graph and writes the table, in about a minute. Run it on an idle machine."""
    with tempfile.TemporaryDirectory(prefix="flame-") as name:
        folder = Path(name)
        side = Side("flame")
        side.start()
        try:
            port = processes.free_port()
            log = folder / "agents.log"
            with processes.running("bench.servers.agent", port, str(AGENTS), log=log):
                side.take_leadership()
                agents = addresses(port, AGENTS)
                alone = _cancel(side, agents, _WARM_UP_SECONDS)
                for format_, file in (("flamegraph", "flame.svg"), ("raw", "stacks")):
                    with _recorder(side.worker_pids[0], format_, folder / file):
                        _cancel(side, agents, _SECONDS)
            described = environment.describe(side.database)
        finally:
            side.stop()
        samples = parts((folder / "stacks").read_text().splitlines())
        (ROOT / "docs/flame.svg").write_bytes((folder / "flame.svg").read_bytes())
    _, _, by_hand = _DOCUMENT.read_text().partition(_END)
    _DOCUMENT.write_text(_document(samples, alone, described) + by_hand)


def _cancel(side: Side, agents: Sequence[str], seconds: float) -> Figures:
    """Cancels tasks for `seconds`, and checks each cancellation in the database."""
    connection = side.connect("CancelTask")
    return windows.cancelled(side, agents, [connection], _CALLERS, seconds, side.worker_pids)


@contextmanager
def _recorder(pid: int, format_: str, output: Path) -> Iterator[None]:
    """Samples the call stacks of a process from the start of the block.

    The output is complete when the block ends. Raises RuntimeError if py-spy fails.
    """
    log = output.with_suffix(".log")
    options = {
        "--pid": pid,
        "--duration": _SECONDS,
        "--rate": _SAMPLES_A_SECOND,
        "--format": format_,
        "--output": output,
    }
    words = [str(word) for option in options.items() for word in option]
    command = [str(Path(sys.executable).with_name("py-spy")), "record", "--native", "--function"]
    with processes.started([*command, *words], log) as recorder:

        def samples_or_fails() -> bool:
            return b"Sampling process" in log.read_bytes() or recorder.poll() is not None

        eventually(samples_or_fails, _START_SECONDS)
        yield
        recorder.wait(_SECONDS + _START_SECONDS)
    if not output.exists():
        raise RuntimeError(f"py-spy has failed:\n{log.read_text()}")


def parts(lines: Iterable[str]) -> dict[str, Counter[str]]:
    """For each part, the number of samples by innermost frame. Leaves out waiting threads."""
    found: dict[str, Counter[str]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not any(_WAITS.match(frame) for frame in frames):
            places = found.setdefault(part(frames), Counter())
            places[_LINE.sub(")", _ADDRESS.sub(r"\1", frames[-1]))] += int(count)
    return found


def part(frames: Sequence[str]) -> str:
    """The part to which a call stack belongs. `frames` begins with the outermost frame."""
    library = ""
    for frame in reversed(frames):
        match = _FRAME.match(frame)
        file = match["file"] if match else ""
        if owner := _listed(file, _OWNERS):
            # The interceptors and the log line surround the whole call, so the engine receives
            # messages and sends replies inside their frames. That work counts for the engine.
            is_around = owner in (_INTERCEPTORS, _LOG)
            return library if is_around and library == _ENGINE else owner
        library = library or _listed(file, _LIBRARIES)
    return library or _REST


def _listed(file: str, places: Mapping[str, tuple[str, ...]]) -> str:
    """The part whose files include this one; empty if none does."""
    return next((name for name, files in places.items() if file.startswith(files)), "")


def _document(
    samples: Mapping[str, Counter[str]], figures: Figures, described: Mapping[str, object]
) -> str:
    """The page with the share of each part."""
    shares = Counter({name: places.total() for name, places in samples.items()})
    total = shares.total()
    rows = [
        f"| {name} | {count / total:.1%} | {figures['cpu_us'] * count / total:.0f} "
        f"| {_busiest(samples[name], total)} |"
        for name, count in shares.most_common()
    ]
    versions = ", ".join(f"{name} {described[name]}" for name in ("python", "grpcio", "postgresql"))
    return _PAGE.format(
        callers=_CALLERS,
        per_second=figures["per_second"],
        cpu=figures["cpu_us"],
        samples=total,
        cores=described["cores"],
        versions=versions,
        rows="\n".join(rows),
        end=_END,
    )


def _busiest(places: Counter[str], total: int) -> str:
    """The most frequent innermost frames of a part, formatted as code."""
    return ", ".join(
        f"`{place.replace('|', '/')}` {count / total:.1%}" for place, count in places.most_common(3)
    )


if __name__ == "__main__":
    main()
