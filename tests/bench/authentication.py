"""Measures what the authentication of one call costs a worker, for each kind of credential.

`python -m tests.bench.authentication` asks the authenticator of a worker, with a real PostgreSQL.
Warm: the credential is cached. Cold: each call has a credential that the worker has not seen.
docs/authentication.md has the figures of a run.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

from evershell.auth.api_keys import ApiKeys, fingerprint, new_secret
from evershell.auth.authenticator import Authenticator
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core import ids
from evershell.core.api_key import ApiKey, KeyTemplate
from evershell.store.keys import PostgresKeys
from evershell.store.pool import open_pool
from tests.support.identity_provider import AUDIENCE, EC, ED, ISSUER, RSA, jwk_set, token
from tests.support.stack import Stack

# The workers read unknown keys at most every 10 ms, so a key that comes alone has to wait for
# nothing but its own query.
_PAUSE_SECONDS = 0.012
_ROUNDS = 5


async def main() -> None:
    """Prints a row for each kind of credential, warm and cold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400, help="for each row")
    calls = parser.parse_args().calls
    table = Table()
    for title in ("credential", "cache", "calls", "processor µs", "p50 µs", "p99 µs"):
        table.add_column(title, justify="left" if title in ("credential", "cache") else "right")
    with tempfile.TemporaryDirectory(prefix="authentication-") as folder:
        stack = Stack(Path(folder) / "state")
        try:
            stack.start()
            jwks = Path(folder) / "jwks.json"
            jwks.write_text(jwk_set(RSA, EC, ED))
            async with open_pool(stack.ready["database_url"]) as pool:
                keys = PostgresKeys(pool)
                sessions = SessionTokens(JwkSet(str(jwks)), ISSUER, AUDIENCE)
                ask = Authenticator(ApiKeys(keys.find_key), sessions).authenticate
                secrets = await _keys(keys, stack.ready["demo"]["org_id"], calls)
                await _measure(table, "API key", ask, secrets, _PAUSE_SECONDS)
                for algorithm in ("RS256", "ES256", "EdDSA"):
                    tokens = [token(algorithm, sub=f"user_{n}") for n in range(calls)]
                    await _measure(table, f"session token, {algorithm}", ask, tokens)
        finally:
            stack.kill_if_running()
    Console().print(table)


async def _keys(stored: PostgresKeys, org_id: str, count: int) -> list[str]:
    """Secrets of valid keys, with one more for the first query."""
    secrets = [new_secret() for _ in range(count)]
    for secret in secrets:
        key = ApiKey(
            id=ids.new_key_id(),
            org_id=org_id,
            name="",
            template=KeyTemplate.FULL_ACCESS,
            created_at=datetime.now(UTC),
        )
        await stored.create_key(key, fingerprint(secret))
    return secrets


async def _measure(
    table: Table,
    name: str,
    ask: Callable[[str], Awaitable[object]],
    credentials: Sequence[str],
    pause_seconds: float = 0.0,
) -> None:
    """Adds the rows of these credentials. Each is cold the first time and warm afterwards."""
    cold, cold_cpu = await _ask(ask, credentials, pause_seconds)
    warm, warm_cpu = [], []
    for _ in range(_ROUNDS):
        seconds, cpu = await _ask(ask, credentials[-100:], 0)
        warm += seconds
        warm_cpu += cpu
    for cache, seconds, cpu in (("cold", cold, cold_cpu), ("warm", warm, warm_cpu)):
        figures = (median(cpu), median(seconds), quantiles(seconds, n=100)[98])
        table.add_row(
            name, cache, f"{len(seconds):,}", *(f"{value * 1e6:,.0f}" for value in figures)
        )


async def _ask(
    ask: Callable[[str], Awaitable[object]], credentials: Sequence[str], pause_seconds: float
) -> tuple[list[float], list[float]]:
    """The time and the processor time of each call, in seconds."""
    took, processor = [], []
    for credential in credentials:
        if pause_seconds:
            await asyncio.sleep(pause_seconds)
        value = f"Bearer {credential}"
        began, cpu = time.perf_counter(), time.thread_time()
        await ask(value)
        processor.append(time.thread_time() - cpu)
        took.append(time.perf_counter() - began)
    return took, processor


if __name__ == "__main__":
    asyncio.run(main())
