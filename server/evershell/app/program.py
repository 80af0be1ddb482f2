"""Code that the programs of the control plane share."""

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from evershell.app.settings import Settings
from evershell.auth.signing_keys import read_signing_keys
from evershell.core.errors import OperatorError
from evershell.store.background import running
from evershell.store.keys import PostgresKeys
from evershell.store.pool import Pool, open_pool
from evershell.store.service_clock import ServiceClock
from evershell.telemetry import logs
from evershell.telemetry.metrics import Metrics, serve_metrics

if TYPE_CHECKING:
    from evershell.auth.agent_certificates import AgentCertificates


def log_and_metrics(program: str, settings: Settings) -> Metrics:
    """Sets up the log of the program. Returns its metrics."""
    log, metrics = logs.configure(program, settings.log_level), Metrics()
    metrics.watch_log(lambda: log.lost_lines)
    return metrics


@contextmanager
def serving_metrics(metrics: Metrics, settings: Settings) -> Iterator[None]:
    """Serves the metrics at METRICS_ADDRESS, if it is set. Raises OperatorError if it cannot."""
    with ExitStack() as stack:
        try:
            stack.enter_context(
                serve_metrics(metrics, settings.metrics_port, settings.metrics_host)
            )
        except OSError as error:
            message = (
                f"Metrics cannot be served at {settings.metrics_address} ({error.strerror}). "
                "Set METRICS_ADDRESS to another address."
            )
            raise OperatorError(message) from error
        yield


def exempt_from_collection() -> None:
    """Excludes all objects that exist now from garbage collection.

    Modules and long-lived parts exist until the program ends. A full collection with them would
    block the event loop for more than 50 ms.
    """
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def database(
    settings: Settings, metrics: Metrics, name: str = ""
) -> AsyncIterator[tuple[Pool, ServiceClock]]:
    """The database connections of a program, and the clock of the service.

    `name` replaces the default name of the database sessions.
    """
    named = {"application_name": name} if name else {}
    async with open_pool(
        make_conninfo(settings.database_url, **named),
        max_size=settings.pool_size,
        behind_pooler=bool(settings.database_session_url),
    ) as pool:
        metrics.watch_pool(pool.get_stats)
        clock = ServiceClock(pool)
        metrics.watch_clock(lambda: clock.machine_offset_seconds, lambda: clock.correction_seconds)
        async with running(clock.run(), "clock"):
            yield pool, clock


@asynccontextmanager
async def open_keys(database_url: str) -> AsyncIterator[PostgresKeys]:
    """Opens the store of API keys for a command, with a single connection.

    Raises psycopg.Error if the URL is not valid.
    """
    async with open_pool(database_url, min_size=1, max_size=1) as pool:
        yield PostgresKeys(pool)


def certificates_of(settings: Settings, signing_keys: str) -> "AgentCertificates | None":
    """Issues the certificates of AGENT_TLS; None if it is off. Raises ValueError."""
    if not settings.agent_tls:
        return None
    # Imported only with AGENT_TLS, because the package for certificates takes 20 ms to import.
    from evershell.auth.agent_certificates import AgentCertificates

    return AgentCertificates(signing_keys)


def signing_keys_of(settings: Settings) -> str:
    """The content of the file of the signing keys.

    Raises OperatorError if the file, or a URL of the database, is missing or not valid.
    """
    if not settings.database_url:
        raise OperatorError(
            "DATABASE_URL is not set. `evershell up` starts everything, including a database."
        )
    for name in ("database_url", "database_session_url"):
        try:
            conninfo_to_dict(getattr(settings, name))
        except psycopg.ProgrammingError:
            # The error can contain the password.
            message = f"{name.upper()} is not a valid URL of PostgreSQL."
            raise OperatorError(message) from None
    return read_signing_keys(settings.signing_key_path)
