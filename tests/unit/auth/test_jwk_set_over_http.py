"""The provider's keys over HTTP: what it answers, and outages."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from joserfc.jwk import OKPKey

from evershell.auth.session_tokens import JwkSet
from evershell.core.errors import UnavailableError
from tests.support.identity_provider import ED, RSA, jwk_set, token
from tests.unit.auth.fake_keys import FakeTimer
from tests.unit.auth.verifying import MAX_AGE_SECONDS, REFRESH_SECONDS, sessions


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


async def test_a_set_is_read_over_http(url: str) -> None:
    Provider.answer = response(jwk_set(OKPKey.import_key(ED.as_dict(private=True))))
    await sessions(JwkSet(url)).authenticate(token("EdDSA"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        response("not yet", status="503 Service Unavailable"),
        response('{"keys": []', length=5_000),
        response("<html>", status="404 Not Found"),
    ],
)
async def test_a_provider_with_an_invalid_answer_is_unavailable(
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


async def test_a_provider_that_is_down_is_unavailable() -> None:
    with HTTPServer(("127.0.0.1", 0), Provider) as server:
        port = server.server_port
    with pytest.raises(UnavailableError):
        await sessions(JwkSet(f"http://127.0.0.1:{port}/")).authenticate(token())
