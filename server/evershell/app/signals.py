"""The signals that programs of the stack handle."""

import asyncio
import signal

# The signal that makes a worker answer waiting calls and close streams, so that clients reconnect
# to the new Envoy. A program that does not handle SIGURG ignores it.
END_WAITS = signal.SIGURG


async def stop_signal() -> None:
    """Waits for the first SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
