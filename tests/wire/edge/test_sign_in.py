"""What the edge answers with an identity provider. The console's tests have the whole flow."""

from collections.abc import Iterator

import httpx
import pytest

from evershell.stack.envoy.sign_in import Provider
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub

PROVIDER = Provider(
    client_id="console",
    client_secret="a secret",
    authorization_url="http://127.0.0.1:9/auth",
    token_url="http://127.0.0.1:9/token",
)
# Of a session that is over, for example because the client has another secret now.
OLD_COOKIES = "evershell-session=old; evershell-access=old; evershell-expires=9999999999"


@pytest.fixture(scope="module")
def provided(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    with running_edge(
        short_directory(tmp_path_factory), _stub_and_address[1], provider=PROVIDER
    ) as running:
        yield running


def get(edge: RunningEdge, path: str, site: str = "same-origin") -> httpx.Response:
    headers = {"cookie": OLD_COOKIES, "sec-fetch-site": site}
    return httpx.get(f"{edge.rest_url}{path}", headers=headers, trust_env=False)


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
    assert begun.headers["location"].startswith(PROVIDER.authorization_url)


@pytest.mark.parametrize(
    ("site", "ends"),
    [("same-origin", True), ("none", True), ("same-site", False), ("cross-site", False)],
)
def test_no_other_site_ends_a_session(provided: RunningEdge, site: str, ends: bool) -> None:
    assert ("set-cookie" in get(provided, "/console/sign-out", site).headers) is ends
