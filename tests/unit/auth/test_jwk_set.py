"""The identity provider's keys, from a file or over HTTP: rotation, broken sets, shared reads."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from joserfc.jwk import ECKey

from evershell.auth.session_tokens import JwkSet
from evershell.core.errors import UnavailableError
from tests.support.identity_provider import EC, ED, RSA, jwk_set, token
from tests.support.waiting import eventually_async, settle
from tests.unit.auth.fake_keys import FakeTimer
from tests.unit.auth.verifying import refused, sessions

NEW = ECKey.generate_key("P-256", {"kid": "new"})
# The least time between two refreshes of the set. A token with an unknown key id triggers a
# refresh.
REFRESH_SECONDS = 10.0
MAX_AGE_SECONDS = 300.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    """The clock by which the age of a key set is measured."""
    clock = FakeTimer()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


class CountedSet(JwkSet):
    """Counts the reads, and blocks them unless `may_read` is set."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.reads = 0
        self.may_read = threading.Event()
        self.may_read.set()

    def _load(self) -> bytes:
        self.reads += 1
        assert self.may_read.wait(10)
        return super()._load()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(jwk_set(RSA, EC, ED))
    return path


@pytest.fixture
def keys(path: Path) -> CountedSet:
    return CountedSet(str(path))


async def test_a_caller_that_goes_away_does_not_end_the_read(keys: CountedSet) -> None:
    """Otherwise every session token would be refused until the next read is allowed."""
    verifier = sessions(keys)
    keys.may_read.clear()
    leaving = asyncio.create_task(verifier.authenticate(token()))
    await eventually_async(lambda: keys.reads)
    leaving.cancel()
    await asyncio.wait([leaving])
    keys.may_read.set()
    await verifier.authenticate(token(sub="user_2"))
    assert keys.reads == 1


async def test_unknown_keys_refresh_the_set_at_a_limited_rate(
    keys: CountedSet, clock: FakeTimer
) -> None:
    verifier = sessions(keys)
    for number in range(20):
        await refused(verifier, token("ES256", kid=f"unknown_{number}"))
    assert keys.reads == 1
    clock.now += REFRESH_SECONDS + 1
    await refused(verifier, token("ES256", kid="unknown"))
    assert keys.reads == 2


async def test_an_old_set_is_refreshed_so_that_a_withdrawn_key_is_refused(
    keys: CountedSet, path: Path, clock: FakeTimer
) -> None:
    verifier = sessions(keys)
    await verifier.authenticate(token("ES256"))
    path.write_text(jwk_set(RSA))
    clock.now += MAX_AGE_SECONDS + 1
    await refused(verifier, token("ES256", sub="user_2"))


BROKEN = ["", "[]", "7", "{}", '{"keys": null}', '{"keys": ["rsa"]}', "[" * 100_000]


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_set_is_unavailable_and_does_not_replace_a_good_one(
    keys: CountedSet, path: Path, clock: FakeTimer, broken: str
) -> None:
    path.write_text(broken)
    verifier = sessions(keys)
    with pytest.raises(UnavailableError):
        await verifier.authenticate(token(kid=None))
    path.write_text(jwk_set(RSA))
    clock.now += REFRESH_SECONDS + 1
    await verifier.authenticate(token(kid=None))
    path.write_text(broken)
    clock.now += MAX_AGE_SECONDS + 1
    await verifier.authenticate(token(sub="user_2"))
    assert keys.reads == 3


@pytest.mark.parametrize(
    "stranger",
    [
        {"kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AAAA"},
        {"kid": "nameless"},
        {"kty": "RSA", "kid": 7, "n": "AQAB"},
    ],
)
async def test_an_unsupported_key_does_not_hide_the_others(
    path: Path, stranger: dict[str, object]
) -> None:
    """RFC 7517, section 5, says that keys which are not understood should be ignored."""
    document = json.loads(path.read_text())
    document["keys"].insert(0, stranger)
    path.write_text(json.dumps(document))
    await sessions(JwkSet(str(path))).authenticate(token())


async def _second_read(keys: CountedSet) -> None:
    # The event loop uses the same stopped clock, so a sleep would never end.
    while keys.reads < 2:
        await asyncio.sleep(0)


async def test_concurrent_calls_with_a_new_key_share_one_refresh(
    keys: CountedSet, path: Path, clock: FakeTimer
) -> None:
    verifier = sessions(keys)
    await verifier.authenticate(token())
    path.write_text(jwk_set(RSA, NEW))
    clock.now += REFRESH_SECONDS + 1
    keys.may_read.clear()
    calls = [
        asyncio.create_task(verifier.authenticate(token("ES256", NEW, sub=f"user_{number}")))
        for number in range(5)
    ]
    await _second_read(keys)
    await settle()
    keys.may_read.set()
    assert len(await asyncio.gather(*calls)) == 5
    assert keys.reads == 2


async def test_known_keys_work_during_a_refresh(keys: CountedSet, clock: FakeTimer) -> None:
    verifier = sessions(keys)
    await verifier.authenticate(token())
    clock.now += MAX_AGE_SECONDS + 1
    keys.may_read.clear()
    reader = asyncio.create_task(verifier.authenticate(token(sub="user_2")))
    await _second_read(keys)
    await asyncio.wait_for(verifier.authenticate(token(sub="user_3")), 5)
    keys.may_read.set()
    await reader


class Provider(BaseHTTPRequestHandler):
    """Answers with the raw bytes that the test sets."""

    answer = b""

    def do_GET(self) -> None:
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def response(body: str, *, status: str = "200 OK", length: int | None = None) -> bytes:
    declared = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {declared}\r\n\r\n{body}".encode()


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/jwks.json"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        response("not yet", status="503 Service Unavailable"),
        response('{"keys": []', length=5_000),
    ],
)
async def test_an_invalid_answer_over_http_is_like_a_broken_set(
    url: str, answer: bytes, clock: FakeTimer
) -> None:
    Provider.answer = answer
    verifier = sessions(JwkSet(url))
    with pytest.raises(UnavailableError):
        await verifier.authenticate(token())
    Provider.answer = response(jwk_set(RSA))
    clock.now += REFRESH_SECONDS + 1
    await verifier.authenticate(token())
    Provider.answer = answer
    clock.now += MAX_AGE_SECONDS + 1
    await verifier.authenticate(token(sub="user_2"))
