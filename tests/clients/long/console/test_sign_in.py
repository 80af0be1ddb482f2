"""Users of the console sign in with an OpenID Connect provider, in a browser."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.npm import NODE, program_folder
from tests.support.ports import free_ports
from tests.support.stack import Stack
from tests.support.waiting import eventually

PROGRAM = Path(__file__).with_name("provider.mjs")
SECRET = "the secret of the console"
RESOURCE = "https://evershell.example"
# Short, so that the session is renewed during the test.
TOKEN_SECONDS = 2
HOLD_TURN = """() => new Promise((begun) => {
  const hold = () => new Promise((end) => { window.endTurn = end; begun(); });
  navigator.locks.request("evershell-session", hold);
})"""
# The number of calls of other tabs that wait for their turn.
WAITING = """async () => {
  const own = (await navigator.locks.query()).held[0].clientId;
  const { pending } = await navigator.locks.query();
  return pending.filter((each) => each.clientId !== own).length;
}"""
# Makes a call. Takes turns with the page's own calls, because any call may renew the session.
ASK = """async ([path, method, mode]) => {
  const call = () => fetch(path, {method, mode, credentials: "include"});
  const answer = await navigator.locks.request("evershell-session", call);
  return [answer.status, mode === "no-cors" ? null : await answer.json()];
}"""


class Provider:
    """The provider's process."""

    def __init__(self, folder: Path, console_url: str) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        arguments = [str(port), SECRET, console_url, str(TOKEN_SECONDS)]
        self._process = subprocess.Popen(
            [NODE, program_folder(folder, PROGRAM) / PROGRAM.name, *arguments],
            env={**os.environ, "NODE_DISABLE_COMPILE_CACHE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        assert b"ready" in self._output.readline()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()


@pytest.fixture(scope="module")
def provided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Provider]]:
    """A stack, and the provider with which its users sign in."""
    folder = tmp_path_factory.mktemp("provider")
    stack = Stack(folder / "state")
    with _provider(folder, f"{stack.rest_url}/console") as provider:
        secret = folder / "secret"
        secret.write_text(f"{SECRET}\n")
        stack.set(
            JWT_ISSUER=provider.url,
            JWKS=f"{provider.url}/jwks",
            OIDC_CLIENT_ID="console",
            OIDC_CLIENT_SECRET_FILE=str(secret),
            OIDC_AUTHORIZATION_URL=f"{provider.url}/auth?{urlencode({'resource': RESOURCE})}",
            OIDC_TOKEN_URL=f"{provider.url}/token",
            OIDC_END_SESSION_URL=f"{provider.url}/session/end",
        )
        with stack.started():
            yield stack, provider


@contextmanager
def _provider(folder: Path, console_url: str) -> Iterator[Provider]:
    programs = folder / "programs"
    programs.mkdir()
    provider = Provider(programs, console_url)
    try:
        yield provider
    finally:
        provider.stop()


@pytest.fixture
def page(browser: Browser, provided: tuple[Stack, Provider]) -> Iterator[Page]:
    """The console, after Ada has signed in."""
    context = browser.new_context()
    yield sign_in(context.new_page(), provided[0], "ada")
    context.close()


def sign_in(page: Page, stack: Stack, name: str) -> Page:
    """Signs in. Begins again if the provider took more than 5 s, after which Envoy answers 401."""

    def is_signed_in() -> bool:
        page.context.clear_cookies()
        page.goto(f"{stack.rest_url}/console")
        page.get_by_role("button", name="Sign in with your organization").click()
        page.get_by_placeholder("Enter any login").fill(name)
        page.get_by_placeholder("and password").fill("any")
        page.get_by_role("button", name="Sign-in").click()
        page.get_by_role("button", name="Continue").click()
        page.wait_for_url(re.compile("/console(/signed-in.*)?$"))
        return page.url == f"{stack.rest_url}/console"

    eventually(is_signed_in)
    expect(page.get_by_role("grid")).to_be_visible()
    return page


def ask(page: Page, path: str, method: str = "GET", mode: str = "cors") -> tuple[int, Any]:
    """Makes a call from the page, with the page's cookies."""
    status, body = page.evaluate(ASK, [path, method, mode])
    return status, body


def expiry(page: Page) -> str:
    """When the session of the page expires. Asks again while a worker is busy."""
    answers: list[tuple[int, Any]] = []

    def is_served() -> bool:
        answers.append(ask(page, "/v1/caller"))
        return answers[-1][0] != 503

    eventually(is_served)
    status, caller = answers[-1]
    assert status == 200
    return str(caller["expires_at"])


def test_the_session_is_the_users_and_no_other_site_can_use_it(
    page: Page, provided: tuple[Stack, Provider]
) -> None:
    stack, provider = provided
    status, caller = ask(page, "/v1/caller")
    assert (status, caller["actor_id"], caller["org_id"]) == (200, "ada", "org_acme")
    assert caller["scopes"] == ["tasks:write:own", "workspace:read", "workspace:write:own"]
    cookies = [each for each in page.context.cookies() if each["name"].startswith("evershell-")]
    assert cookies and all(each["httpOnly"] for each in cookies)
    assert page.evaluate("document.cookie") == ""

    # SameSite does not stop calls from the first origin, which is the same site: only its port
    # differs.
    for other in (f"{provider.url}/unknown", provider.url.replace("127.0.0.1", "localhost")):
        foreign = page.context.new_page()
        foreign.goto(other)
        ask(foreign, f"{stack.rest_url}/v1/workspaces", "POST", "no-cors")
        foreign.close()
    assert ask(page, "/v1/workspaces")[1]["workspaces"] == []
    assert ask(page, "/v1/workspaces", "POST")[0] == 201
    assert len(ask(page, "/v1/workspaces")[1]["workspaces"]) == 1


def test_a_session_is_renewed_and_ends_with_the_provider_or_by_signing_out(
    page: Page, provided: tuple[Stack, Provider]
) -> None:
    first = expiry(page)
    eventually(lambda: expiry(page) != first)
    # The page keeps asking for its session until the service answers.
    page.route("**/v1/caller", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("group", name="Connection")).to_contain_text("no answer")
    expect(page.get_by_text("Looking for your session")).to_be_visible()
    page.unroute("**/v1/caller")
    expect(page.get_by_role("grid")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name=re.compile("Yes")).click()
    expect(page).to_have_url(f"{provided[0].rest_url}/console")
    status, body = ask(page, "/v1/caller")
    assert (status, body["error"]["code"]) == (401, "unauthenticated")


def test_no_refresh_token_is_used_twice(browser: Browser, provided: tuple[Stack, Provider]) -> None:
    """The provider would end a session whose refresh token is used twice.

    Two tabs make calls at the same time. In each tab, the event `online` makes all polling loops of
    the page call at once.
    """
    context = browser.new_context()
    pages = [sign_in(context.new_page(), provided[0], "grace"), context.new_page()]
    pages[1].goto(pages[0].url)
    for page in pages:
        page.evaluate("() => void setInterval(() => dispatchEvent(new Event('online')), 200)")
    expiries = set()
    for _ in range(4):
        expiries.add(expiry(pages[0]))
        eventually(lambda: expiry(pages[1]) not in expiries)
    for page in pages:
        expect(page.get_by_role("grid")).to_be_visible()
        expect(page.get_by_role("dialog")).to_have_count(0)
    context.close()


def test_a_new_tab_takes_its_turn(page: Page) -> None:
    """Tabs take turns to renew the session. A new tab waits while another tab has its turn."""
    opened = page.context.new_page()
    calls: list[str] = []
    opened.on("request", lambda request: calls.append(urlsplit(request.url).path))
    page.evaluate(HOLD_TURN)
    opened.goto(page.url)
    eventually(lambda: page.evaluate(WAITING) > 0)
    assert "/v1/caller" not in calls
    page.evaluate("endTurn()")
    expect(opened.get_by_role("grid")).to_be_visible()


def test_tokens_work_while_the_provider_is_down(
    page: Page, provided: tuple[Stack, Provider]
) -> None:
    stack, provider = provided
    provider.stop()
    assert stack.rest("full_access").get("/v1/caller")["credential_kind"] == "api_key"

    def is_over() -> bool:
        status, body = ask(page, "/v1/caller")
        assert (status, body.get("error", {}).get("code")) in (
            (200, None),
            (401, "unauthenticated"),
        )
        return status == 401

    eventually(is_over)
    expect(page.get_by_role("dialog")).to_contain_text("You are no longer signed in.")
