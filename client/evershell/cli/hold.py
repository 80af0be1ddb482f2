"""The commands `hold` and `release`."""

import click

from evershell.cli import show
from evershell.cli.cancel_tasks import check_can_ask, confirm, print_counts
from evershell.cli.exit_codes import TABLE
from evershell.cli.options import Call, service_options
from evershell.cli.terminal import printable, say_lines
from evershell.client import Hold

_HELP = f"""Put your organization on hold: it gets no new task and no new agent until
`evershell release`. Running tasks continue, unless you add --cancel-running.

Needs the scope org:hold, which no API key has: use a session token.

{TABLE}"""

_RELEASE_HELP = f"""End the hold of your organization. Needs the scope org:hold.

{TABLE}"""


@click.command(help=_HELP)
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="Shown with each call that the hold refuses; at most 500 characters.",
)
@click.option("--cancel-running", is_flag=True, help="Also cancel every task that has not ended.")
@click.option("--show", "only_show", is_flag=True, help="Only show whether there is a hold.")
@click.option("--yes", is_flag=True, help="Do not ask before tasks are cancelled.")
@service_options
def hold(call: Call, reason: str, cancel_running: bool, only_show: bool, yes: bool) -> None:
    """Puts the organization on hold, or only reads its hold, and prints the hold."""
    if only_show:
        _print_hold(call, call.client.get_hold())
        return
    if cancel_running and not yes:
        check_can_ask(call)
        preview = call.client.cancel_tasks(all=True, dry_run=True)
        if preview.matched:
            confirm(preview.matched)
    result = call.client.hold(reason=reason, cancel_running=cancel_running)
    if call.as_json:
        show.json_value(result.to_dict())
        return
    _print_hold(call, result.hold)
    if cancel_running:
        print_counts(result.accepted, result.already_requested, result.remaining)


@click.command(help=_RELEASE_HELP)
@service_options
def release(call: Call) -> None:
    """Releases the organization, and prints that there is no hold."""
    _print_hold(call, call.client.release())


def _print_hold(call: Call, held: Hold) -> None:
    if call.as_json:
        show.json_value(held.to_dict())
    elif not held.on_hold:
        say_lines(f"Organization {printable(held.org_id)} is not on hold.")
    else:
        say_lines(f"Organization {printable(held.org_id)} is on hold.")
        show.line("since", f"{show.time(held.held_since)} by {held.held_by}")
        if held.reason:
            show.line("reason", held.reason)
