"""The signals that programs of the stack handle."""

import asyncio
import signal

# While an Envoy drains, the stack sends this signal to the workers. A worker then answers waiting
# calls and closes streams, so that clients leave the draining Envoy. A program that does not handle
# SIGURG ignores it.
END_WAITS = signal.SIGURG


async def stop_signal() -> None:
    """Waits for the first SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
