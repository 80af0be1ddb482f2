"""The periodic jobs of the fleet controller.

The controller that leads runs them in addition to its scans. To add a job, write the function for
one run in a module of `fleet/`, and add the job to JOBS. `make gen` lists it in docs/operating.md.
"""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias

from evershell.app.settings import Settings
from evershell.fleet.counts import count
from evershell.fleet.parts import Parts
from evershell.fleet.periodic import repeat
from evershell.fleet.retention import Retention
from evershell.telemetry.metrics import Metrics

# Runs a job once.
Run: TypeAlias = Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that is repeated as long as the controller leads."""

    name: str
    # What the job does, in Markdown.
    what: str
    # The pause between the end of a run and the next run.
    pause_seconds: float
    # Returns the function that runs the job once, or None if the settings switch the job off. That
    # function may raise UnavailableError.
    of: Callable[[Parts, Settings, Metrics], Run | None]


def _count(parts: Parts, settings: Settings, metrics: Metrics) -> Run | None:
    return None if parts.backlog is None else partial(count, parts.store, parts.backlog)


def _remove_old_tasks(parts: Parts, settings: Settings, metrics: Metrics) -> Run | None:
    kept = timedelta(days=settings.task_retention_days)
    if not kept:
        return None
    store, clock = parts.store, parts.clock
    return Retention(store, clock, kept, metrics.removed_tasks, leads=parts.leads).sweep


JOBS = (
    Job(
        name="counts",
        what="counts workspaces and holds, and finds the oldest task that has ended, "
        "for the [metrics](monitoring.md#metrics), with `METRICS_ADDRESS`",
        pause_seconds=60,
        of=_count,
    ),
    Job(
        name="retention",
        what="removes [old tasks](lifetime.md#retention), with `TASK_RETENTION_DAYS`",
        pause_seconds=600,
        of=_remove_old_tasks,
    ),
)


def background(
    parts: Parts, settings: Settings, metrics: Metrics
) -> Sequence[Callable[[], Coroutine[Any, Any, None]]]:
    """The jobs that the settings switch on. Each runs until it is cancelled."""
    made = ((job, job.of(parts, settings, metrics)) for job in JOBS)
    return [partial(repeat, job.name, run, job.pause_seconds) for job, run in made if run]
