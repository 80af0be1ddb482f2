"""`python -m evershell.commands.deliver`: sends the requests of webhooks, for a worker.

A worker starts it and writes to its standard input; it ends when that ends.
"""

import uvloop

from evershell.app import delivery
from evershell.commands.environment import problems_reported, read_settings


def main() -> None:
    """Runs until the worker ends."""
    with problems_reported():
        uvloop.run(delivery.deliver(read_settings()))


if __name__ == "__main__":
    main()
