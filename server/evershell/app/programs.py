"""Runs the programs of the control plane: a worker (`serve`), the process in which it delivers
webhooks (`deliver`), or a fleet controller (`fleet`).
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

from evershell.api.health import liveness_served
from evershell.app import wiring
from evershell.app.settings import Settings
from evershell.app.signals import stop_signal
from evershell.core.errors import OperatorError
from evershell.telemetry import logs, turns
from evershell.telemetry.metrics import Metrics, serve_metrics
from evershell.webhooks.process import follow_worker

# The time limit of a drain. Less than the 5 s after which the stack kills a worker that stops.
DRAIN_SECONDS = 4.0


async def serve(settings: Settings, port: int) -> None:
    """Runs one worker until SIGTERM or SIGINT, then drains it. Raises OperatorError."""
    metrics = _log_and_metrics("serve", settings)
    async with turns.counted(), wiring.control_plane(settings, metrics) as server:
        with _serving(metrics, settings):
            _exempt_from_collection()
            await server.start(f"{settings.listen_host}:{port}", serving=False)
            await stop_signal()
            await server.drain(DRAIN_SECONDS)


async def deliver(settings: Settings) -> None:
    """Delivers webhooks until the worker that has started it ends. Raises OperatorError."""
    logs.configure("deliver", settings.log_level)
    async with wiring.deliverer(settings) as deliverer:
        delivering = asyncio.create_task(deliverer.run())
        reading = asyncio.create_task(follow_worker(deliverer.wake))
        await asyncio.wait((delivering, reading), return_when=asyncio.FIRST_COMPLETED)
        if delivering.done():
            # It ends only with an unexpected error, which makes the process fail.
            delivering.result()
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)


async def fleet(settings: Settings, health_address: str | None = None) -> None:
    """Runs one fleet controller until SIGTERM or SIGINT. Pods continue to run.

    Serves its liveness at `health_address`, which is host:port or unix:/path. Raises OperatorError.
    """
    metrics = _log_and_metrics("fleet", settings)
    async with (
        _live_at(health_address),
        wiring.fleet(settings, metrics) as lead,
        # A rolling restart stops the other controller once this one has made a turn.
        turns.counted(),
    ):
        with _serving(metrics, settings):
            _exempt_from_collection()
            leading = asyncio.ensure_future(lead())
            stopping = asyncio.create_task(stop_signal())
            await asyncio.wait((leading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                # It ends only with an unexpected error, which makes the process fail.
                leading.result()
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)


def _exempt_from_collection() -> None:
    """Takes what exists now out of garbage collection.

    Modules and wiring live until the program ends. A full collection that looks at them blocks the
    event loop for more than 50 ms.
    """
    gc.collect()
    gc.freeze()


def _log_and_metrics(program: str, settings: Settings) -> Metrics:
    log, metrics = logs.configure(program, settings.log_level), Metrics()
    metrics.watch_log(lambda: log.lost_lines)
    return metrics


@asynccontextmanager
async def _live_at(address: str | None) -> AsyncIterator[None]:
    """Serves the liveness, unless the address is None. Raises OperatorError."""
    async with AsyncExitStack() as stack:
        if address is not None:
            try:
                await stack.enter_async_context(liveness_served(address))
            except RuntimeError as error:
                raise OperatorError(f"--health-address {address} cannot be used.") from error
        yield


@contextmanager
def _serving(metrics: Metrics, settings: Settings) -> Iterator[None]:
    """Serves the metrics, unless the port is 0. Raises OperatorError if the port is taken."""
    with ExitStack() as stack:
        try:
            stack.enter_context(
                serve_metrics(metrics, settings.metrics_port, settings.metrics_host)
            )
        except OSError as error:
            message = (
                f"Metrics cannot be served on port {settings.metrics_port} ({error.strerror}). "
                "Set METRICS_PORT to another one."
            )
            raise OperatorError(message) from error
        yield
