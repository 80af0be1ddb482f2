"""The command `release`."""

import click

from evershell.cli.exit_codes import TABLE
from evershell.cli.hold import print_hold
from evershell.cli.options import Call, service_options

_HELP = f"""End the hold of your organization. Needs the scope org:hold.

{TABLE}"""


@click.command(help=_HELP)
@service_options
def release(call: Call) -> None:
    """Makes the call and prints that there is no hold."""
    print_hold(call, call.client.release())
