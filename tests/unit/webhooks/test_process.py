"""The process that sends webhook requests."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from evershell.features.webhooks import process
from evershell.store.background import running

_PROGRAM = """
import asyncio, resource
from evershell.features.webhooks.process import follow_worker
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
asyncio.run(follow_worker(lambda: None))
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
"""


def test_it_may_have_as_many_connections_as_the_system_allows() -> None:
    """Many hosts allow a program only 1,024 open files unless it asks for more."""
    subprocess.run([sys.executable, "-c", _PROGRAM], input=b"", check=True, timeout=60)


async def test_its_resolver_gives_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    program = "import json, os; print(json.dumps({'options': os.environ['RES_OPTIONS']}))"
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", program))
    monkeypatch.delenv("RES_OPTIONS", raising=False)

    async def is_needed() -> bool:
        return True

    delivery = process.DeliveryProcess(is_needed, lambda **counts: seen.put_nowait(counts))
    delivery.created()
    async with running(delivery.run(), "process"), asyncio.timeout(60):
        assert await seen.get() == {"options": process.RESOLVER["RES_OPTIONS"]}
