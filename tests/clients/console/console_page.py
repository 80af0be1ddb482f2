"""The console in a browser, and what a person does with it."""

import re
from typing import Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Request, expect

from tests.support.stack import Workspace

# The page does not read the whole list each minute, but when a test calls `pass_minute`.
_MINUTE = """
  const every = setInterval;
  window.passMinute = () => {};
  window.setInterval = (run, ms) => {
    if (ms !== 60_000) return every(run, ms);
    window.passMinute = run;
    return 0;
  };
"""


class Console:
    """The console in a browser. Records its requests and its errors."""

    def __init__(
        self,
        browser: Browser,
        origin: str,
        scheme: Literal["dark", "light"] = "light",
        width: int = 1280,
        *,
        has_touch: bool = False,
        script: str = "",
    ) -> None:
        """`script` runs before the scripts of the page."""
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 800}, has_touch=has_touch
        )
        for each in (_MINUTE, script):
            self.context.add_init_script(each)
        self.page: Page = self.context.new_page()
        self.origin = origin
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.tokens: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console",
            # Ignores what the browser logs about error statuses, because tests provoke them.
            lambda message: (
                self.problems.append(message.text)
                if message.type in ("error", "warning")
                and not message.text.startswith("Failed to load resource")
                else None
            ),
        )
        self.page.goto(f"{origin}/console")

    def close(self) -> None:
        self.context.close()

    def pass_minute(self) -> None:
        """Lets the page do what it does each minute."""
        self.page.evaluate("passMinute()")

    def show(self, workspace: Workspace) -> None:
        """Signs in and opens the page of the workspace."""
        self.sign_in(workspace.stack.tokens["full_access"])
        self.open(workspace.id)

    def sign_in(self, token: str) -> None:
        self.tokens.append(token)
        self.page.get_by_label("API key or session token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()

    def find(self, text: str) -> None:
        """Filters the list."""
        self.page.get_by_role("searchbox").fill(text)

    def open(self, workspace_id: str) -> None:
        """Opens the page of a workspace from the list."""
        self.find(workspace_id)
        expect(self.rows).to_have_count(1)
        self.rows.locator(".status").click()
        expect(self.page).to_have_url(f"{self.origin}/console#/workspaces/{workspace_id}")

    def cancel(self, reason: str = "", choice: str = "Finish") -> None:
        """Cancels the task of the open workspace."""
        self.page.get_by_role("button", name="Cancel this task").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill(reason)
        dialog.get_by_role("button", name=choice).click()
        expect(dialog).to_be_hidden()

    @property
    def rows(self) -> Locator:
        return self.page.locator(".rows .row")

    @property
    def health(self) -> Locator:
        """The line that says when the service answered last."""
        return self.page.get_by_role("group", name="Connection")

    @property
    def log(self) -> Locator:
        return self.page.get_by_role("region", name="Event log")

    @property
    def cancellation(self) -> Locator:
        return self.page.get_by_role("region", name="Cancellation")

    def step(self, title: str | re.Pattern[str]) -> Locator:
        """A completed step of the cancellation."""
        return self.cancellation.locator(".step.done").filter(has_text=title)

    def list_calls(self) -> list[str]:
        """The URLs with which the list was read, whole or in part."""
        # Playwright notes requests only while it is called.
        self.page.evaluate("0")
        paths = ("/v1/workspaces", "/v1/tasks")
        found = [each.url for each in self.requests if urlsplit(each.url).path in paths]
        # The sign-in reads a page of another size.
        return [url for url in found if "page_size=200" in url]

    def whole_list_calls(self) -> list[str]:
        """The URLs with which the whole list was read."""
        return [url for url in self.list_calls() if "workspace_ids" not in url]

    def stream_ids(self) -> list[str | None]:
        """Where each stream of the list has begun: its `last-event-id`."""
        self.page.evaluate("0")
        return [
            each.headers.get("last-event-id")
            for each in self.requests
            if urlsplit(each.url).path == "/v1/events"
        ]

    def await_list(self) -> None:
        """Waits until the whole list has been read."""
        counted = self.page.get_by_role("status").filter(has_text=re.compile(r"workspaces?\s*$"))
        expect(counted).to_have_count(1)

    def check(self) -> None:
        """Checks that the page called no other origin, kept no token, and reported no problem."""
        assert {urlsplit(request.url)[:2] for request in self.requests} == {
            urlsplit(self.origin)[:2]
        }
        assert not [
            each.url for each in self.requests for token in self.tokens if token in each.url
        ]
        assert self.page.evaluate("() => [localStorage.length, sessionStorage.length]") == [0, 0]
        assert self.context.cookies() == []
        assert self.problems == []
