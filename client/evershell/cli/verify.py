"""The command `verify`: judges what callers see while faults occur in a deployment."""

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import click

from evershell.cli import show
from evershell.cli.exit_codes import ExitCode
from evershell.cli.options import Call, service_options
from evershell.cli.progress import Say, shown_progress
from evershell.cli.terminal import printable, say_lines
from evershell.cli.values import DURATION
from evershell.cli.verify_load import END_SECONDS, Load
from evershell.client import CallError
from evershell.histories import lines
from evershell.histories.judge import judge
from evershell.histories.recorder import Recorder

# With the model `scripted`, the agent runs each line of a description as a shell command.
_DESCRIPTION = "\n".join(["sleep 1"] * 6)
_HELP = """Check a deployment while you inject faults.

The command creates workspaces, in which it submits tasks, cancels them, reads them and watches
them. You inject the faults: kill programs, cut networks, fail the database over, upgrade. The
command records every answer, and then looks for an order of the calls in which every answer is
right. At the end, also after Ctrl-C, it deletes its workspaces.

Use a key with full access to an organization that is used for nothing else. If somebody else
cancels tasks there or puts the organization on hold, right answers look wrong. End the faults
before the load ends: the last tasks then have 2 minutes to end.

\b
Exit codes:
    0  held: every answer is right, and every cancelled task has ended
    1  broken: some answers cannot all be right, or a cancelled task has not ended
    2  not known: the load could not begin, its end could not be seen, or no
       cancellation was accepted
  130  ended with Ctrl-C, and nothing was wrong until then
"""


class Verdict(IntEnum):
    """The verdicts, with their exit codes."""

    HELD = 0
    BROKEN = 1
    NOT_KNOWN = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class _Verify(click.Command):
    """A command that exits with 2 if click raises an error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.exit_code = Verdict.NOT_KNOWN  # type: ignore[misc]
            raise


@click.command(cls=_Verify, help=_HELP)
@click.option(
    "--for",
    "seconds",
    type=DURATION,
    default="10m",
    metavar="DURATION",
    help="How long the calls go on. Default: 10m.",
)
@click.option(
    "--workspaces",
    type=click.IntRange(1, 50),
    default=4,
    metavar="NUMBER",
    help="How many workspaces to create. Each runs one task at a time. Default: 4.",
)
@click.option(
    "--description",
    default=_DESCRIPTION,
    metavar="TEXT",
    help="What each task tells its agent. A workspace gets about 15 tasks a minute. Most are "
    "cancelled within 3 s. Choose something cheap and harmless with several iterations. "
    "Default: six lines of `sleep 1`, which the built-in agent runs as commands.",
)
@click.option(
    "--history",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all calls and answers to this new file, which `python -m evershell.histories FILE` "
    "judges again. Otherwise a file is kept only if something is wrong.",
)
@click.option(
    "--beside-others",
    is_flag=True,
    help="Run even if the organization has other workspaces. They are not touched.",
)
@service_options
def verify(
    call: Call,
    seconds: float,
    workspaces: int,
    description: str,
    history: Path | None,
    beside_others: bool,
) -> None:
    """Runs the load, prints the verdict, and exits with its code or with INTERRUPTED."""
    if history and history.exists():
        raise click.BadParameter(f"{history} exists already.", param_hint="--history")
    folder = Path(tempfile.mkdtemp(prefix="evershell-verify-"))
    path = history or folder / "history.jsonl"
    verdict = Verdict.NOT_KNOWN
    try:
        if not beside_others:
            _refuse_others(call)
        began = datetime.now(UTC)
        with shown_progress(wanted=True) as progress:
            load = asyncio.run(_run(call, path, description, workspaces, seconds, progress))
        calls = lines.read([path])
        verdict = _report(load, calls, began, as_json=call.as_json)
        if history or verdict is Verdict.BROKEN:
            show.line("history", str(path), error=True)
    except CallError as error:
        show.fail(error, call.target.url, as_json=call.as_json, code=Verdict.NOT_KNOWN)
    except asyncio.CancelledError:
        # A second SIGTERM arrived while the workspaces were being deleted.
        sys.exit(ExitCode.INTERRUPTED)
    finally:
        if history or verdict is not Verdict.BROKEN:
            shutil.rmtree(folder)
    is_interrupted = load.is_interrupted and verdict is not Verdict.BROKEN
    sys.exit(ExitCode.INTERRUPTED if is_interrupted else verdict)


def _refuse_others(call: Call) -> None:
    other = next(iter(call.client.list_workspaces()), None)
    if other is not None:
        raise click.ClickException(
            f"The organization has a workspace, {other.id} ({other.name or 'without a name'}). Use "
            "the key of an organization that has none, or add --beside-others."
        )


async def _run(
    call: Call, path: Path, description: str, workspaces: int, seconds: float, progress: Say
) -> Load:
    """Runs the load, and writes its history to the file."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    # At SIGTERM, as at Ctrl-C, the load ends and the workspaces are deleted. Only Unix can do this.
    with suppress(NotImplementedError):
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        with closing(Recorder(path, time.monotonic())) as recorder:
            async with call.target.connect_async(call.timeout) as client:
                load = Load(client, recorder, description)
                await load.run(workspaces, seconds, progress)
                return load
    except (OSError, ExceptionGroup) as error:
        raise click.ClickException(f"The load could not go on: {error!r}.") from error


def _report(load: Load, history: lines.History, began: datetime, *, as_json: bool) -> Verdict:
    """Judges the history, and prints what callers saw and the verdict."""
    problems = [str(each) for each in judge(history)]
    problems += (
        f"{workspace_id}: {task_id} is cancelled, but has not ended after {END_SECONDS:.0f} s"
        for workspace_id, task_id in load.not_ended.items()
    )
    calls = history.calls
    answers = [each.answer for each in calls if each.answer is not None]
    outcomes = Counter(str(each["outcome"]) for each in answers if "outcome" in each)
    errors = Counter(each.error or "no answer" for each in calls if each.answer is None)
    events = sum(len(each.messages) for each in calls)
    verdict, text = Verdict.HELD, f"every answer of {len(calls)} calls is right."
    if problems:
        verdict, text = Verdict.BROKEN, f"these answers cannot be right. 0 s is {show.time(began)}."
    elif load.unknown:
        text = f"the service did not show the end of the tasks of {', '.join(load.unknown)}."
        verdict = Verdict.NOT_KNOWN
    elif not outcomes["accepted"]:
        verdict, text = Verdict.NOT_KNOWN, "no cancellation was accepted."
    methods = {name: _method(name, calls) for name in sorted({each.name for each in calls})}
    if as_json:
        counts = {"methods": methods, "outcomes": outcomes, "errors": errors, "events": events}
        show.json_value({"verdict": str(verdict), "text": text, "problems": problems, **counts})
        return verdict
    rows = [tuple(map(str, (name, *cells.values()))) for name, cells in methods.items()]
    show.table(("CALL", "CALLS", "ERRORS", "SLOWEST", "REQUEST"), rows, "No call was made.")
    for name, counted in (("cancellations", outcomes), ("errors", errors)):
        show.line(name, ", ".join(f"{count} {each}" for each, count in counted.items()) or "none")
    show.line("events", str(events))
    show.said(str(verdict), text)
    for each in problems:
        say_lines(printable(each, block=True))
    return verdict


def _method(name: str, calls: Sequence[lines.Call]) -> dict[str, Any]:
    """The row of a method in the table. Its slowest call is never a stream or a call that waits."""
    of_name = [each for each in calls if each.name == name]
    timed = [each for each in of_name if name != "WatchEvents" and "wait" not in each.arguments]
    answered = [each for each in timed if each.answer is not None]
    slowest = max(answered, key=lambda each: each.ended - each.began, default=None)
    return {
        "calls": len(of_name),
        "errors": sum(each.answer is None for each in of_name),
        "slowest": f"{slowest.ended - slowest.began:.3f} s" if slowest else "-",
        "request_id": slowest.request_id if slowest else "-",
    }
