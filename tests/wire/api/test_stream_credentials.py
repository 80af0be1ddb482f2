"""A stream ends when its credential is revoked or expires."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from evershell.workspace.v1 import error_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.caller import ApiKey
from evershell.core.errors import UnavailableError
from tests.support.identity_provider import AUDIENCE, EC, ISSUER, jwk_set, token
from tests.support.waiting import eventually_async
from tests.support.world import NOW, World, iteration
from tests.wire.api.running import Failed, Running, bearer, find_key, running


class Keys:
    """The stored API keys, which a test may revoke or make unavailable."""

    def __init__(self) -> None:
        self.revoked = False
        self.unavailable = False
        self.asked = 0
        self.digests: list[bytes] = []

    async def find(self, digest: bytes) -> ApiKey | None:
        self.asked += 1
        self.digests.append(digest)
        if self.unavailable:
            raise UnavailableError("10.0.0.7")
        key = await find_key(digest)
        return replace(key, revoked_at=NOW) if key is not None and self.revoked else key


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
async def server(
    world: World, keys: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Running]:
    """A server that checks credentials again every 20 ms."""
    monkeypatch.setattr("evershell.api.interceptors.authentication.RECHECK_SECONDS", 0.02)
    monkeypatch.setattr("evershell.auth.api_keys.CACHE_SECONDS", 0.01)
    (tmp_path / "jwks.json").write_text(jwk_set(EC))
    authenticator = Authenticator(
        ApiKeys(keys.find), SessionTokens(JwkSet(str(tmp_path / "jwks.json")), ISSUER, AUDIENCE)
    )
    async with running(world, authenticator=authenticator) as started:
        yield started


async def last_message(
    stream: "AsyncIterator[messages.WatchEventsResponse]",
) -> tuple[messages.WatchEventsResponse | None, Failed]:
    """The last message of the stream, and the failure that ends the stream."""
    last: messages.WatchEventsResponse | None = None
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for message in stream:
            last = message
    return last, Failed.of(raised.value)


async def test_a_key_that_is_revoked_ends_its_streams_in_band(
    server: Running, world: World, keys: Keys
) -> None:
    busy, _ = await world.add_busy()
    stream = aiter(
        server.stub.WatchEvents(
            messages.WatchEventsRequest(workspace_id=busy.id, after=1),
            metadata=bearer(),
            timeout=10,
        )
    )
    assert (await anext(stream)).event.seq == 2
    keys.revoked = True
    last, failed = await last_message(stream)
    assert last is not None and last.error.code == error_pb2.Error.unauthenticated
    assert (failed.slug, failed.message) == ("unauthenticated", last.error.message)
    assert not world.subscriptions.has_subscribers(busy.id)


async def test_a_session_that_expires_ends_its_streams(server: Running, world: World) -> None:
    """The token has expired already; the leeway for clock skew keeps it valid for 3 to 4 s more."""
    busy, _ = await world.add_busy()
    session = token(key=EC, algorithm="ES256", exp=int(time.time()) - 1)
    request = messages.WatchEventsRequest(workspace_id=busy.id, after=1)
    stream = aiter(server.stub.WatchEvents(request, metadata=bearer(session), timeout=30))
    assert (await anext(stream)).event.seq == 2
    last, _ = await last_message(stream)
    assert last is not None and last.error.code == error_pb2.Error.unauthenticated


async def test_a_stream_lives_while_its_credential_is_valid(
    server: Running, world: World, keys: Keys
) -> None:
    """The stream goes on after many checks, and also while its credential cannot be checked."""
    busy, task = await world.add_busy()
    call = server.stub.WatchEvents(
        messages.WatchEventsRequest(workspace_id=busy.id), metadata=bearer(), timeout=10
    )
    stream = aiter(call)
    seqs = [(await anext(stream)).event.seq for _ in range(2)]
    for number in range(1, 11):
        keys.unavailable = number > 5
        before = keys.asked
        await eventually_async(lambda: keys.asked > before)
        await world.commit(busy.id, task.id, iteration(number))
        seqs.append((await anext(stream)).event.seq)
    call.cancel()
    assert seqs == list(range(1, 13))


async def test_the_stream_of_a_watcher_that_does_not_read_ends_too(
    server: Running, world: World, keys: Keys
) -> None:
    busy, task = await world.add_busy()
    await world.commit(
        busy.id, task.id, *(iteration(number, "x" * 60_000) for number in range(1, 401))
    )
    call = server.stub.WatchEvents(
        messages.WatchEventsRequest(workspace_id=busy.id), metadata=bearer(), timeout=10
    )
    stream = aiter(call)
    await anext(stream)
    keys.revoked = True
    await eventually_async(lambda: not world.subscriptions.has_subscribers(busy.id))
    count = 1
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in stream:
            count += 1
    assert count < 402
    assert Failed.of(raised.value).slug == "unauthenticated"
