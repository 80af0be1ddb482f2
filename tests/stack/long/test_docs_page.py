"""The page at /docs in a real browser.

The page loads nothing from other origins, and can cancel a task.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect

from tests.support.openapi import operations
from tests.support.stack import Gate, Stack, Workspace


class Docs:
    """The page in the browser, with a record of its requests, errors and warnings."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.requests: list[Request] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on(
            "requestfailed",
            lambda request: self.problems.append(f"{request.url}: {request.failure}"),
        )
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on(
            "console",
            lambda message: (
                self.problems.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.goto(f"{origin}/docs")
        expect(page.locator(".opblock")).to_have_count(len(operations()))

    def authorize(self, token: str) -> None:
        """Enters a token in the dialog."""
        self.page.locator("button.authorize").first.click()
        dialog = self.page.locator(".auth-container")
        dialog.locator("input").fill(token)
        dialog.locator("button.authorize").click()
        self.page.locator(".close-modal").click()

    def open(self, operation: str) -> Locator:
        """Opens the form of an operation and returns it."""
        block = self.page.locator(f"[id$='-{operation}'].opblock")
        block.locator(".opblock-summary-control").click()
        block.locator(".try-out__btn").click()
        return block

    def check_network_and_console(self) -> None:
        """Checks that the page has called only its own origin and has reported no problem."""
        assert {
            urlsplit(request.url)[:2]
            for request in self.requests
            if not request.url.startswith("data:")
        } == {urlsplit(self.origin)[:2]}
        assert self.problems == []


@pytest.fixture
def docs(browser: Browser, stack: Stack) -> Iterator[Docs]:
    page = browser.new_page()
    yield Docs(page, stack.ready["rest_url"])
    page.close()


def test_the_page_can_cancel_a_task(
    docs: Docs, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command, "touch never")

    docs.authorize(stack.tokens["full_access"])
    form = docs.open("CancelTask")
    form.locator("tr[data-param-name=workspace_id] input").fill(workspace.id)
    form.locator("button.execute").click()

    answer = form.locator(".live-responses-table .response")
    expect(answer.locator(".response-col_status")).to_contain_text("202")
    expect(answer.locator(".response-col_description")).to_contain_text('"outcome": "accepted"')
    assert workspace.log()[-1]["type"] == "task_cancel_requested"
    gate.open()
    end = workspace.await_end(task_id)
    # The form initially contains the example of the OpenAPI document, from which the reason comes.
    assert (end["status"], end["iterations"], end["reason"]) == (
        "cancelled",
        1,
        "it has gone wrong",
    )
    assert not (stack.files(workspace.id) / "never").exists()
    docs.check_network_and_console()
