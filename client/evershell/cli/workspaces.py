"""The commands `workspaces`, and `workspace show`, `create`, `stop`, `resume` and `delete`."""

import sys
from dataclasses import asdict
from typing import Any

import click

from evershell.cli import show
from evershell.cli.cancel_tasks import (
    all_results,
    check_can_ask,
    confirm,
    parse_filter,
    with_ids,
)
from evershell.cli.completion import complete_workspace
from evershell.cli.exit_codes import ExitCode
from evershell.cli.lists import (
    first,
    having,
    limit_option,
    page_size,
    print_count,
    status_option,
)
from evershell.cli.options import Call, service_options
from evershell.cli.terminal import Commands, printable, say_lines
from evershell.client import (
    ResumeWorkspacesResult,
    TaskFilter,
    Workspace,
    WorkspaceFilter,
    WorkspaceStatus,
)

_ARGUMENT = click.argument("workspace", shell_complete=complete_workspace)


@click.group(cls=Commands, help="Show, create, stop, resume and delete a workspace.")
def workspace() -> None:
    """The group of the commands about one workspace."""


@workspace.command("show", help="Show one workspace.")
@_ARGUMENT
@service_options
def show_(call: Call, workspace: str) -> None:
    """Prints the workspace."""
    _print(call, call.client.get_workspace(workspace))


@workspace.command(help="Create a workspace and start its agent.")
@click.option("--name", default="", metavar="NAME", help="A human-readable name.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="A repeated command with the same key creates nothing and prints the first answer.",
)
@service_options
def create(call: Call, name: str, idempotency_key: str | None) -> None:
    """Creates a workspace, and prints it."""
    _print(call, call.client.create_workspace(name, idempotency_key=idempotency_key))


@workspace.command(
    help="Stop WORKSPACE: end its agent and keep its files. A running task is cancelled, and its "
    "iteration is interrupted after 10 s."
)
@_ARGUMENT
@service_options
def stop(call: Call, workspace: str) -> None:
    """Stops the workspace, and prints it. It may still be `stopping`."""
    _print(call, call.client.stop_workspace(workspace))


def _parse_filter(
    context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]
) -> WorkspaceFilter | None:
    """Makes a filter from the values of `--filter`; None if there are none."""
    found = parse_filter(context, parameter, pairs)
    if found is None:
        return None
    wanted = WorkspaceFilter(
        workspace_ids=found.workspace_ids, created_by_user_id=found.created_by_user_id
    )
    if found != TaskFilter(**asdict(wanted)):
        raise click.BadParameter("A workspace has only the filters workspace and created-by.")
    return wanted


@workspace.command(
    help="Start a new agent for WORKSPACE, which is stopped or failed. With --filter, resume every "
    "failed workspace of your organization that matches all filters; with --all, every failed "
    "workspace. The command asks for the number of workspaces first."
)
@click.argument("workspace", required=False, shell_complete=complete_workspace)
@click.option("--all", "everything", is_flag=True, help="Resume every failed workspace.")
@click.option(
    "--filter",
    "wanted",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_filter,
    help="Resume every failed workspace that matches; can be given several times: "
    "workspace=WORKSPACE, created-by=USER.",
)
@click.option(
    "--dry-run", is_flag=True, help="With --all or --filter: show the workspaces and resume none."
)
@click.option(
    "--yes", is_flag=True, help="With --all or --filter: do not ask for the number of workspaces."
)
@service_options
def resume(
    call: Call,
    workspace: str | None,
    everything: bool,
    wanted: WorkspaceFilter | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Resumes a workspace or many, and prints the result. They may still be `provisioning`."""
    is_bulk = everything or wanted is not None
    if everything and wanted is not None:
        raise click.UsageError("--all and --filter exclude each other.")
    if is_bulk and workspace is not None:
        raise click.UsageError("--all and --filter take no WORKSPACE.")
    if (dry_run or yes) and not is_bulk:
        raise click.UsageError("--dry-run and --yes need --all or --filter.")
    if is_bulk:
        _resume_many(call, wanted, dry_run=dry_run, yes=yes)
    elif workspace:
        _print(call, call.client.resume_workspace(workspace))
    else:
        raise click.UsageError("Missing argument 'WORKSPACE'. --all resumes every failed one.")


def _resume_many(call: Call, wanted: WorkspaceFilter | None, *, dry_run: bool, yes: bool) -> None:
    """Resumes every failed workspace that matches, or only lists them if `dry_run`."""
    if not dry_run and not yes:
        check_can_ask(call)
    selection: dict[str, Any] = {"all": True}
    if wanted is not None:
        selection = {"filter": with_ids(call, wanted)}
    if dry_run or not yes:
        preview = call.client.resume_workspaces(**selection, dry_run=True)
        if dry_run or not preview.matched:
            _print_preview(call, preview)
            return
        confirm(preview.matched, "resumes", "resumed", "workspace")
    results = all_results(call.client.resume_all_workspaces(**selection))
    accepted, remaining = sum(each.accepted for each in results), results[-1].remaining
    if call.as_json:
        counts = {"matched": accepted + remaining, "accepted": accepted, "remaining": remaining}
        show.json_value(counts | {"calls": [each.to_dict() for each in results]})
        return
    noun = "workspace" if accepted == 1 else "workspaces"
    show.said("accepted", f"{accepted} {noun} resumed. A workspace is idle once its agent is up.")


def _print_preview(call: Call, preview: ResumeWorkspacesResult) -> None:
    if call.as_json:
        show.json_value(preview.to_dict())
        return
    rows = [(each.workspace_id, str(each.outcome)) for each in preview.results]
    show.table(("WORKSPACE", "OUTCOME"), rows, "No failed workspace matches.")
    if preview.matched:
        show.line("matched", f"{preview.matched} would be resumed", error=True)


@workspace.command(
    help="Delete WORKSPACE with its files, tasks and events. A running task is cancelled, and its "
    "iteration is interrupted after 10 s."
)
@_ARGUMENT
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@service_options
def delete(call: Call, workspace: str, yes: bool) -> None:
    """Deletes the workspace, and prints it. Its status is `deleting`."""
    if not yes:
        _confirm_deletion(call, workspace)
    _print(call, call.client.delete_workspace(workspace))


def _confirm_deletion(call: Call, workspace: str) -> None:
    """Asks whether to delete the workspace, and exits unless the answer is yes."""
    if call.as_json:
        raise click.UsageError("--json asks nothing: add --yes.")
    question = f"This deletes {printable(workspace)} with its files, tasks and events. Go on?"
    try:
        is_confirmed = click.confirm(question, err=True)
    except click.Abort:
        # Ctrl-C was pressed, or standard input has ended.
        is_confirmed = False
        say_lines("", error=True)
    if not is_confirmed:
        say_lines("Not confirmed. Nothing was deleted.", error=True)
        sys.exit(ExitCode.REFUSED)


def _print(call: Call, workspace: Workspace) -> None:
    if call.as_json:
        show.json_value(workspace.to_dict())
        return
    say_lines(f"workspace {printable(workspace.id)}: {show.status(workspace.status)}")
    if workspace.name:
        show.line("name", workspace.name)
    if workspace.status_reason:
        show.line("status reason", workspace.status_reason)
    show.line("task", workspace.current_task_id or "-")
    show.line(
        "created", f"{show.time(workspace.created_at)} by {workspace.created_by_user_id or 'a key'}"
    )
    show.line("changed", show.time(workspace.updated_at))


@click.command(help="List the workspaces of your organization, newest first.")
@status_option(WorkspaceStatus)
@limit_option()
@service_options
def workspaces(call: Call, statuses: tuple[str, ...], limit: int | None) -> None:
    """Prints one line for each workspace."""
    pages = call.client.list_workspaces(page_size=page_size(limit, statuses))
    listed, has_more = first(having(pages, statuses), limit)
    if call.as_json:
        show.json_value({"workspaces": [workspace.to_dict() for workspace in listed]})
        return
    show.table(
        ["WORKSPACE", "STATUS", "CURRENT TASK", "CREATED", "NAME"],
        [
            (
                each.id,
                each.status.value,
                each.current_task_id or "-",
                show.time(each.created_at),
                each.name,
            )
            for each in listed
        ],
        "No workspace has this status." if statuses else "Your organization has no workspaces.",
    )
    print_count(len(listed), "workspace", has_more=has_more)
