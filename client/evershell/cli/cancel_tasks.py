"""Cancels many tasks, for `cancel --all` and `cancel --filter`.

`hold` and `workspace resume` use some of it, too.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import click

from evershell.cli import show
from evershell.cli.exit_codes import ExitCode
from evershell.cli.names import workspace_id
from evershell.cli.options import Call
from evershell.cli.progress import OUTAGES
from evershell.cli.terminal import say_lines
from evershell.client import (
    CancelTasksResult,
    ResumeWorkspacesResult,
    TaskFilter,
    WorkspaceFilter,
)

Filter = TypeVar("Filter", TaskFilter, WorkspaceFilter)
Result = TypeVar("Result", CancelTasksResult, ResumeWorkspacesResult)

FILTER_HELP = (
    "Cancel every task that matches; can be given several times: task=ID, workspace=WORKSPACE, "
    "created-by=USER, submitted-by=ID, submitted-before=TIME, metadata.KEY=VALUE."
)
_LISTS = {"task": "task_ids", "workspace": "workspace_ids"}
_FIELDS = {"created-by": "created_by_user_id", "submitted-by": "submitted_by"}
_METADATA = "metadata."


def cancel_tasks(
    call: Call,
    wanted: TaskFilter | None,
    reason: str,
    force_after: float | None,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Cancels every task that matches, or only counts them if `dry_run`.

    Prints the counts, and exits with an ExitCode. If `wanted` is None, every task of the
    organization matches.
    """
    if not dry_run and not yes:
        check_can_ask(call)
    selection: dict[str, Any] = {"all": True}
    if wanted is not None:
        selection = {"filter": with_ids(call, wanted)}
    preview = None
    if dry_run or not yes:
        preview = call.client.cancel_tasks(
            **selection, reason=reason, force_after=force_after, dry_run=True
        )
    if dry_run:
        assert preview is not None
        _print_dry_run(call, preview)
        sys.exit(ExitCode.DONE if preview.matched else ExitCode.NOTHING_TO_CANCEL)
    if preview is not None and not preview.matched:
        # Makes no call, because nothing was confirmed: a call could cancel tasks that were
        # submitted after the count.
        results = [preview]
    else:
        if preview is not None:
            confirm(preview.matched)
        results = all_results(
            call.client.cancel_all_tasks(**selection, reason=reason, force_after=force_after)
        )
    accepted = sum(result.accepted for result in results)
    first, last = results[0], results[-1]
    if call.as_json:
        counts = {
            "matched": accepted + first.already_requested + last.remaining,
            "accepted": accepted,
            "already_requested": first.already_requested,
            "remaining": last.remaining,
        }
        show.json_value(counts | {"calls": [result.to_dict() for result in results]})
    else:
        print_counts(accepted, first.already_requested, last.remaining)
    sys.exit(ExitCode.DONE if first.matched else ExitCode.NOTHING_TO_CANCEL)


def with_ids(call: Call, wanted: Filter) -> Filter:
    """The filter, with ids in place of the names of workspaces."""
    if wanted.workspace_ids is None:
        return wanted
    ids = tuple(workspace_id(call.client, named) for named in wanted.workspace_ids)
    return replace(wanted, workspace_ids=ids)


def all_results(calls: Iterable[Result]) -> list[Result]:
    """The results of all calls.

    If the service cannot answer or the user presses Ctrl-C, prints how many tasks or workspaces the
    earlier calls have changed, and raises the error.
    """
    results: list[Result] = []
    accepted = 0
    try:
        for result in calls:
            results.append(result)
            accepted += result.accepted
    except (*OUTAGES, KeyboardInterrupt):
        text = f"{accepted}, counting only answered calls. It is safe to run the command again."
        show.line("recorded", text, error=True)
        raise
    return results


def check_can_ask(call: Call) -> None:
    """Raises click.UsageError if the command cannot ask a question."""
    if call.as_json:
        raise click.UsageError("--json asks nothing: add --yes, or --dry-run.")


def confirm(count: int, does: str = "cancels", done: str = "cancelled", noun: str = "task") -> None:
    """Asks the user to type the number of tasks, and exits if the answer differs."""
    plural = "" if count == 1 else "s"
    try:
        answer = click.prompt(
            f"This {does} {count} {noun}{plural} of your organization. Type the number of {noun}s "
            "to go on",
            err=True,
        )
    except click.Abort:
        # Ctrl-C was pressed, or standard input has ended.
        answer = ""
        say_lines("", error=True)
    if answer.strip() != str(count):
        say_lines(f"Not confirmed. Nothing was {done}.", error=True)
        sys.exit(ExitCode.REFUSED)


def print_counts(accepted: int, already_requested: int, remaining: int) -> None:
    """Prints how many tasks were cancelled."""
    if not accepted and not already_requested and not remaining:
        say_lines("Nothing runs that matches, so there is nothing to cancel.")
        return
    noun = "cancellation" if accepted == 1 else "cancellations"
    show.said("accepted", f"{accepted} {noun} recorded.")
    if already_requested:
        show.line("before", f"{already_requested} had been requested before")
    if remaining:
        show.line("remaining", f"{remaining}; run the command again")
    show.line("next", "Each agent finishes its current iteration; the task then ends cancelled.")


def _print_dry_run(call: Call, preview: CancelTasksResult) -> None:
    if call.as_json:
        show.json_value(preview.to_dict())
        return
    pending = preview.matched - preview.already_requested
    rows = [(each.task_id, each.workspace_id, str(each.outcome)) for each in preview.results]
    show.table(("TASK", "WORKSPACE", "OUTCOME"), rows, "No task matches.")
    if preview.matched:
        text = (
            f"{pending} would be cancelled, {preview.already_requested} had been requested before"
        )
        show.line("matched", text, error=True)


def parse_filter(
    context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]
) -> TaskFilter | None:
    """Makes a filter from the values of `--filter`; None if there are none."""
    if not pairs:
        return None
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not value:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE.")
        _add(fields, name, value)
    return TaskFilter(**fields)


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    key = name.removeprefix(_METADATA)
    if name in _LISTS:
        fields[_LISTS[name]] = (*fields.get(_LISTS[name], ()), value)
    elif name.startswith(_METADATA) and key not in fields.get("metadata", {}):
        fields.setdefault("metadata", {})[key] = value
    elif name == "submitted-before" and "submitted_before" not in fields:
        try:
            fields["submitted_before"] = datetime.fromisoformat(value)
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is not a time; write 2026-11-24T18:03:00Z."
            ) from None
    elif name in _FIELDS and _FIELDS[name] not in fields:
        fields[_FIELDS[name]] = value
    else:
        is_known = name in (*_FIELDS, "submitted-before") or name.startswith(_METADATA)
        problem = "was given twice" if is_known else "is not the name of a filter"
        raise click.BadParameter(f"{name!r} {problem}.")
