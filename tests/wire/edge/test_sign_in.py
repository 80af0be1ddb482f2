"""How an edge that has an identity provider answers. The console's tests cover a whole sign-in."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest

from evershell.stack.envoy.config import OPERATORS_LOGGERS, Edge, render
from evershell.stack.envoy.sign_in import Provider
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub
from tests.support.waiting import eventually

PROVIDER = Provider(
    client_id="console",
    client_secret="a secret",
    authorization_url="http://127.0.0.1:9/auth?scope=openid+offline_access&resource=https%3A%2F%2Fa",
    token_url="http://127.0.0.1:9/token",
)
# Cookies of a session that is over, for example because the client's secret was replaced.
OLD_COOKIES = "evershell-session=old; evershell-access=old; evershell-expires=9999999999"


class TokenEndpoint(BaseHTTPRequestHandler):
    """Gives tokens for any code and any refresh token."""

    def do_POST(self) -> None:
        tokens = {"access_token": "a", "refresh_token": "r", "id_token": "i", "expires_in": 60}
        body = json.dumps(tokens | {"token_type": "Bearer"}).encode()
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def provided(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenEndpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        provider = replace(PROVIDER, token_url=f"http://127.0.0.1:{server.server_port}/token")
        directory = short_directory(tmp_path_factory)
        with running_edge(directory, _stub_and_address[1], provider=provider) as running:
            yield running
        server.shutdown()


def get(
    edge: RunningEdge, path: str, site: str = "same-origin", cookies: str = OLD_COOKIES
) -> httpx.Response:
    headers = {"cookie": cookies, "sec-fetch-site": site}
    return httpx.get(f"{edge.rest_url}{path}", headers=headers, trust_env=False)


def sign_in(edge: RunningEdge, **changes: str) -> httpx.Response:
    """The answer to a browser that comes back from the provider, with `changes` to its `state`."""
    begun = get(edge, "/console/sign-in", cookies="")
    state = dict(parse_qsl(urlsplit(begun.headers["location"]).query))["state"]
    if changes:
        facts = json.loads(base64.urlsafe_b64decode(state + "=" * (-len(state) % 4))) | changes
        state = base64.urlsafe_b64encode(json.dumps(facts).encode()).decode().rstrip("=")
    back = f"/console/signed-in?{httpx.QueryParams(code='c', state=state)}"
    cookies = "; ".join(f"{name}={value}" for name, value in begun.cookies.items())
    return get(edge, back, "cross-site", cookies)


@pytest.mark.parametrize("path", ["/v1/workspaces/ws_1", "/v1/workspaces/ws_1/events"])
def test_a_call_of_a_session_that_is_over_is_unauthenticated(
    provided: RunningEdge, path: str
) -> None:
    answer = get(provided, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (401, "unauthenticated")
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/console", "/console/console.js", "/console/sign-in.json"])
def test_a_user_whose_session_is_over_gets_the_page_to_sign_in_again(
    provided: RunningEdge, path: str
) -> None:
    assert get(provided, path).status_code == 200
    begun = get(provided, "/console/sign-in")
    assert begun.headers["location"].startswith("http://127.0.0.1:9/auth?")


def test_the_provider_gets_the_query_of_its_endpoint(provided: RunningEdge) -> None:
    begun = get(provided, "/console/sign-in", cookies="")
    asked = parse_qs(urlsplit(begun.headers["location"]).query)
    assert (asked["scope"], asked["resource"]) == (["openid offline_access"], ["https://a"])


@pytest.mark.parametrize(
    ("site", "ends"),
    [("same-origin", True), ("none", True), ("same-site", False), ("cross-site", False)],
)
def test_no_other_site_ends_a_session(provided: RunningEdge, site: str, ends: bool) -> None:
    assert ("set-cookie" in get(provided, "/console/sign-out", site).headers) is ends


def test_a_session_is_renewed_after_the_browser_has_removed_its_access_token(
    provided: RunningEdge, stub: Stub
) -> None:
    signed_in = sign_in(provided)
    refresh = f"evershell-refresh={signed_in.cookies['evershell-refresh']}"
    renewed = get(provided, "/v1/workspaces/ws_1", cookies=refresh)
    assert renewed.status_code == 200
    assert renewed.cookies["evershell-session"]
    # The edge ignores the cookies in a call from a page of another origin.
    assert not get(provided, "/v1/workspaces/ws_1", "same-site", refresh).cookies


@pytest.mark.parametrize("changes", [{}, {"url": "https://evil.example/"}])
def test_the_way_back_leads_to_the_console(provided: RunningEdge, changes: dict[str, str]) -> None:
    """The URL in `state` is not authenticated, so it must not lead to another site."""
    signed_in = sign_in(provided, **changes)
    assert (signed_in.status_code, signed_in.headers["location"]) == (302, "/console")
    assert signed_in.cookies["evershell-session"]


@pytest.mark.parametrize("sites", [("cross-site", "same-origin"), ("same-origin", "none")])
def test_cookies_do_not_count_if_one_of_several_headers_names_another_site(
    provided: RunningEdge, sites: tuple[str, str]
) -> None:
    with httpx.Client(base_url=provided.rest_url, trust_env=False) as client:
        headers = [("cookie", OLD_COOKIES), *(("sec-fetch-site", site) for site in sites)]
        # Envoy's OAuth2 filter would refuse the old session, but it does not get the cookies.
        assert client.get("/v1/workspaces/ws_1", headers=headers).status_code == 200


def test_with_https_no_other_host_of_the_domain_can_set_the_cookies(
    _stub_and_address: tuple[Stub, str],
    tmp_path_factory: pytest.TempPathFactory,
    provided: RunningEdge,
) -> None:
    assert provided.settings.provider is not None
    provider = replace(provided.settings.provider, public_scheme="https")
    directory = short_directory(tmp_path_factory)
    with running_edge(directory, _stub_and_address[1], provider=provider) as edge:
        signed_in = sign_in(edge)
        assert signed_in.cookies["__Host-evershell-session"]
        refresh = f"__Host-evershell-refresh={signed_in.cookies['__Host-evershell-refresh']}"
        assert get(edge, "/v1/workspaces/ws_1", cookies=refresh).status_code == 200
        ended = get(edge, "/console/sign-out", cookies=refresh)
        for answer in (signed_in, ended):
            for cookie in answer.headers.get_list("set-cookie"):
                name, _, attributes = cookie.partition("=")
                # What browsers require of a cookie with this prefix, to set and to remove it.
                assert name.startswith("__Host-")
                assert "secure" in attributes.lower() and "path=/;" in attributes
                assert "domain" not in attributes.lower()


def test_a_stranger_writes_nothing_into_the_log_of_the_edge(provided: RunningEdge) -> None:
    """The OAuth2 filter would log the decoded `state` as it is."""
    forged = '{"event":"edge_call","status":200,"user_agent":"forged"}'
    states = [f"\n{forged}\n\x1b[2J", '{"url": "forged"}', '{"csrf_token": 1}', "x" * 20_000]
    for state in states:
        encoded = base64.urlsafe_b64encode(state.encode()).decode().rstrip("=")
        for query in ({"code": "c", "state": encoded}, {"error": state[:9_000], "state": encoded}):
            answer = get(provided, f"/console/signed-in?{httpx.QueryParams(query)}", "cross-site")
            assert answer.status_code < 500
    path = provided.settings.admin_socket.parent / "envoy.log"
    # Waits until the log has the line of the last call.
    eventually(lambda: answer.headers["x-request-id"] in path.read_text())
    log = path.read_text()
    assert "\x1b" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    assert all(line["event"] == "edge_call" and line["user_agent"] != "forged" for line in lines)
    assert max(map(len, log.splitlines())) < 2_000


def test_only_loggers_that_callers_cannot_reach_are_on(provided: RunningEdge) -> None:
    levels = dict(re.findall(r"^  (\w+): (\w+)$", provided.admin_post("/logging"), re.MULTILINE))
    # The components that are known to log what callers send.
    assert {"oauth2", "http", "http2", "connection", "filter", "router", "lua"} < set(levels)
    assert {name for name, level in levels.items() if level not in ("critical", "off")} == set(
        OPERATORS_LOGGERS
    )


def test_only_the_owner_can_read_the_secret_in_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "envoy.yaml"
    # The file of an earlier version, which did not write a secret.
    path.touch(mode=0o644)
    edge = Edge(8080, 8081, ["127.0.0.1:50051"], tmp_path / "admin.sock", provider=PROVIDER)
    render(edge, path)
    assert PROVIDER.client_secret in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
