"""`python -m evershell.commands.deliver`: sends webhook requests for a worker.

The worker starts this program and writes to its standard input. The program ends when its input
ends.
"""

from evershell.imports import without_collection


def main() -> None:
    """Runs until the worker ends."""
    with without_collection():
        import uvloop

        from evershell.app import delivery
        from evershell.commands.environment import problems_reported, read_settings
    with problems_reported():
        uvloop.run(delivery.deliver(read_settings()))


if __name__ == "__main__":
    main()
