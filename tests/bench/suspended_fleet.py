"""What suspended workspaces cost, and how long the first task of one takes.

    python -m tests.bench.suspended_fleet cost [--workspaces N] [--seconds S]
    python -m tests.bench.suspended_fleet wake [--workspaces N]

`cost` runs a PostgreSQL, a worker and a fleet controller, and measures the processor time and the
private memory of each without workspaces and with N suspended ones. `wake` runs a whole stack, and
submits one task to each of N suspended workspaces, one after another.

Each prints one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psycopg

from tests.bench import processes
from tests.bench.figures import percentile
from tests.bench.idle_fleet import ControlPlane, insert, running, used
from tests.support.stack import ROOT, Stack, Workspace
from tests.support.waiting import eventually

_IDLE_SECONDS = 20.0
_LIMIT_SECONDS = 90.0


def cost(workspaces: int, seconds: float) -> dict[str, object]:
    """Thousandths of a core and MB, by program, without workspaces and with them."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        running(ROOT, Path(folder)) as plane,
    ):
        empty = _measure(plane, seconds)
        insert(plane.url, 1, workspaces)
        with psycopg.connect(plane.url, autocommit=True) as connection:
            connection.execute(
                "UPDATE workspaces SET status = 'suspended', run_id = NULL, agent_address = NULL, "
                "lease_expires_at = NULL"
            )
            connection.execute("VACUUM (FULL, ANALYZE) workspaces")
        return {"workspaces": workspaces, "empty": empty, "suspended": _measure(plane, seconds)}


def _measure(plane: ControlPlane, seconds: float) -> dict[str, float]:
    time.sleep(2)
    before, began = plane.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    cores = {
        f"{name}, core/1000": round(1000 * value / (time.monotonic() - began), 2)
        for name, value in used(plane, before).items()
    }
    pids = {"worker": plane.worker_pid, "controller": plane.controller_pid}
    memory = {
        f"{name}, MB": round(processes.private_bytes(pid) / 1e6, 1) for name, pid in pids.items()
    }
    return {**cores, **memory}


def wake(workspaces: int) -> dict[str, object]:
    """Milliseconds from SubmitTask to its answer, in suspended and then in idle workspaces."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        stack = Stack(
            Path(folder) / "state",
            IDLE_SUSPEND_MINUTES=str(_IDLE_SECONDS / 60),
            RATE_LIMIT="off",
        )
        with stack.started():
            made = [Workspace(stack) for _ in range(workspaces)]
            eventually(
                lambda: all(each.get()["status"] == "suspended" for each in made), _LIMIT_SECONDS
            )
            suspended = [_submitted(each) for each in made]
            idle = [_submitted(each) for each in made]
    return {"workspaces": workspaces, "suspended": _summary(suspended), "idle": _summary(idle)}


def _submitted(at: Workspace) -> float:
    began = time.perf_counter()
    answer = at.rest.post(f"{at.path}/tasks", {"description": "true"})
    elapsed = time.perf_counter() - began
    assert answer["status"] in ("delivered", "running", "completed"), answer
    at.await_end(answer["task_id"])
    return 1000 * elapsed


def _summary(milliseconds: list[float]) -> dict[str, float]:
    return {
        "p50": round(median(milliseconds), 1),
        "p90": round(percentile(milliseconds, 90), 1),
        "max": round(max(milliseconds), 1),
    }


def main() -> None:
    """Measures and prints."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cost", "wake"))
    parser.add_argument("--workspaces", type=int)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    figures = (
        cost(options.workspaces or 5_000, options.seconds)
        if options.what == "cost"
        else wake(options.workspaces or 30)
    )
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
