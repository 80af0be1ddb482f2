"""`make flame`: draws where a worker spends its processor time in CancelTask.

Starts a stack, loads one worker with CancelTask by 16 callers, samples its stacks with py-spy,
native code included, and writes `docs/flame.svg` and `docs/hot-path.md`. Every cancellation is
checked in the database.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench import arming, environment, flame_graph, processes, stacks, windows
from tests.bench.figures import Figures
from tests.bench.side import Side
from tests.support.stack import ROOT
from tests.support.waiting import eventually

_CALLERS = 16
_SECONDS = 15
_WARM_UP_SECONDS = 3.0
_SAMPLES_A_SECOND = 100
_START_SECONDS = 30.0
# More tasks than the load can cancel, from the throughput of the warm-up.
_MARGIN = 2.0
_COLOURS = {
    stacks.ENGINE: "#f4a582",
    stacks.INTERCEPTORS: "#c2a5cf",
    stacks.LOG: "#fee08b",
    stacks.CODEC: "#e6f598",
    stacks.USE_CASE: "#abdda4",
    stacks.DATABASE: "#92c5de",
    stacks.SIGNAL: "#f6b3d2",
    stacks.LOOP: "#d9d9d9",
    stacks.REST: "#f0f0f0",
}
_PAGE = """\
<!-- Written by `make flame`. Do not edit up to the end mark. -->

# The hot path of CancelTask

Where a worker spends its processor time while {callers} callers cancel tasks, each one a task of
its own. py-spy has sampled the worker's stacks, native code included; samples of threads that wait
are left out.

Before the sampling began, the worker answered {per_second:.0f} calls a second and used
{cpu:.0f} µs of processor time for each. The shares are those of {samples} samples, on {cores} cores
that other programs may have used too, with {versions}.

![Flame graph of CancelTask](flame.svg)

A sample belongs to the part of the innermost frame that has one: the JSON encoder belongs to the
log line if the log line calls it. What libraries do for no part is that of the gRPC engine or of
the event loop. The gRPC engine includes the system calls that receive a call and send its reply,
also where the interceptors call it.

| part | share | µs a call | where most samples end |
|---|---|---|---|
{rows}

{end}"""
_END = "<!-- The end of what `make flame` writes. -->"
_DOCUMENT = ROOT / "docs/hot-path.md"


def main() -> None:
    """Takes about a minute. It is only worth reading from an otherwise idle machine."""
    with tempfile.TemporaryDirectory(prefix="flame-") as name:
        folder = Path(name)
        side = Side("flame")
        side.start()
        try:
            port = processes.free_port()
            with processes.running("tests.bench.servers.agent", port, log=folder / "agent.log"):
                side.take_leadership()
                agent_address = f"127.0.0.1:{port}"
                alone = _cancel(side, agent_address, _WARM_UP_SECONDS, 20_000)
                expected = alone["per_second"] * _SECONDS * _MARGIN
                with _recorder(side.worker_pids[0], folder) as samples:
                    _cancel(side, agent_address, _SECONDS, int(expected))
            described = environment.describe(side.database)
        finally:
            side.stop()
        counts = stacks.read(samples.read_text().splitlines())
    (ROOT / "docs/flame.svg").write_text(flame_graph.draw(counts, stacks.part, _COLOURS))
    _, _, by_hand = _DOCUMENT.read_text().partition(_END)
    _DOCUMENT.write_text(_document(counts, alone, described) + by_hand)


def _cancel(side: Side, agent_address: str, seconds: float, count: int) -> Figures:
    """Cancels tasks for this time, and checks each cancellation in the database."""
    tasks = side.arm(count, agent_address)
    bodies = [windows.cancel_body(workspace_id) for workspace_id in tasks.workspace_ids]
    figures = windows.figures_of(
        side.connect("CancelTask"), bodies, _CALLERS, seconds, side.worker_pids
    )
    arming.check(side.database, tasks, int(figures["calls"]) + windows.WARM_UP_CALLS)
    return figures


@contextmanager
def _recorder(pid: int, folder: Path) -> Iterator[Path]:
    """Samples the stacks of a process from the start of the block. Yields the file of the stacks.

    The file is complete when the block is left. Raises RuntimeError if py-spy fails.
    """
    samples, log = folder / "stacks", folder / "py-spy.log"
    options = {
        "--pid": pid,
        "--duration": _SECONDS,
        "--rate": _SAMPLES_A_SECOND,
        "--format": "raw",
        "--output": samples,
    }
    words = [str(word) for option in options.items() for word in option]
    command = [str(Path(sys.executable).with_name("py-spy")), "record", "--native", "--function"]
    with log.open("wb") as output:
        recorder = subprocess.Popen([*command, *words], stdout=output, stderr=output)

    def samples_or_fails() -> bool:
        return b"Sampling process" in log.read_bytes() or recorder.poll() is not None

    try:
        eventually(samples_or_fails, _START_SECONDS)
        yield samples
        recorder.wait(_SECONDS + _START_SECONDS)
    finally:
        recorder.kill()
        recorder.wait()
    if not samples.exists():
        raise RuntimeError(f"py-spy has failed:\n{log.read_text()}")


def _document(
    counts: Mapping[stacks.Stack, int],
    figures: Figures,
    described: Mapping[str, object],
) -> str:
    """The page with the share of each part."""
    parts: Counter[str] = Counter()
    places: dict[str, Counter[str]] = {part: Counter() for part in stacks.PARTS}
    for stack, count in counts.items():
        part = stacks.part(stack)
        parts[part] += count
        places[part][stack[-1] if stack else "unknown"] += count
    total = parts.total()
    rows = [
        f"| {part} | {parts[part] / total:.1%} | {figures['cpu_us'] * parts[part] / total:.0f} "
        f"| {_busiest(places[part], total)} |"
        for part, _ in parts.most_common()
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
    """The frames in which most samples of a part end, as code."""
    return ", ".join(
        f"`{place.replace('|', '/')}` {count / total:.1%}" for place, count in places.most_common(3)
    )


if __name__ == "__main__":
    main()
