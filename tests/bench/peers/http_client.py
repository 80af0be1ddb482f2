"""Sends the requests of a peer and keeps the responses. Not for figures: httpx is too slow."""

import asyncio
from collections.abc import Sequence

import httpx

from tests.bench.peers import Address, HttpRequest

_TIMEOUT_SECONDS = 30.0


def send_all(
    address: Address, requests: Sequence[HttpRequest], callers: int
) -> list[httpx.Response]:
    """Sends each request once, and returns the responses in the same order.

    Each caller sends its next request when its last one was answered. Raises httpx.HTTPError if
    the server does not answer within 30 s.
    """
    return asyncio.run(_send_all(address, requests, callers))


async def _send_all(
    address: Address, requests: Sequence[HttpRequest], callers: int
) -> list[httpx.Response]:
    host, port = address
    responses: dict[int, httpx.Response] = {}
    remaining = iter(enumerate(requests))

    async def call(client: httpx.AsyncClient) -> None:
        for index, request in remaining:
            responses[index] = await client.request(
                request.method, request.path, headers=request.headers, content=request.body
            )

    async with (
        httpx.AsyncClient(
            base_url=f"http://{host}:{port}", timeout=_TIMEOUT_SECONDS, trust_env=False
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(call(client))
    return [responses[index] for index in range(len(requests))]
