"""The page at /docs in a real browser: it loads from this origin alone, and a cancellation sent
from it is one.
"""

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright

from tests.support.openapi import operations
from tests.support.stack import Gate, Stack, Workspace

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
# A browser that is asked for nothing asks nobody for anything.
QUIET = [
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no browser here; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


class Docs:
    """The page, and all that it did to the network and said to the console."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on(
            "requestfailed",
            lambda request: self.complaints.append(f"{request.url}: {request.failure}"),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                self.complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.goto(f"{origin}/docs")
        expect(page.locator(".opblock")).not_to_have_count(0)

    def authorize(self, token: str) -> None:
        """Types a token into the dialog."""
        self.page.locator("button.authorize").first.click()
        dialog = self.page.locator(".auth-container")
        dialog.locator("input").fill(token)
        dialog.locator("button.authorize").click()
        self.page.locator(".close-modal").click()

    def open(self, operation: str) -> Locator:
        """The form of an operation."""
        block = self.page.locator(f"[id$='-{operation}'].opblock")
        block.locator(".opblock-summary-control").click()
        block.locator(".try-out__btn").click()
        return block

    def check_quiet(self) -> None:
        """Nothing was asked of anybody else, and nothing complained."""
        assert {
            urlsplit(request.url)[:2]
            for request in self.requests
            if not request.url.startswith("data:")
        } == {urlsplit(self.origin)[:2]}
        assert self.complaints == []


@pytest.fixture
def docs(browser: Browser, stack: Stack) -> Iterator[Docs]:
    page = browser.new_page()
    yield Docs(page, stack.ready["rest_url"])
    page.close()


def test_the_page_shows_every_operation(docs: Docs) -> None:
    methods = docs.page.locator(".opblock-summary-method").all_inner_texts()
    # The page lets a long path break at its slashes, by characters that have no width.
    paths = [
        path.replace("\u200b", "")
        for path in docs.page.locator(".opblock-summary-path").all_inner_texts()
    ]
    assert set(zip(methods, paths, strict=True)) == {
        (each.method, each.path) for each in operations()
    }
    form = docs.open("CancelTask")
    example = form.locator("tr.response[data-code='503'] pre.example")
    expect(example).to_contain_text('"intent_recorded": true')
    docs.check_quiet()


def test_a_cancellation_from_the_page(
    docs: Docs, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command, "touch never")
    workspace.await_phase(task_id, "tool_call")

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
    # The reason is that of the document's example, which the page fills in.
    assert (end["status"], end["iterations"], end["reason"]) == (
        "cancelled",
        1,
        "it has gone wrong",
    )
    assert not (stack.files(workspace.id) / "never").exists()
    docs.check_quiet()


def test_without_a_token_the_page_shows_the_refusal(docs: Docs, workspace: Workspace) -> None:
    form = docs.open("GetWorkspace")
    form.locator("tr[data-param-name=workspace_id] input").fill(workspace.id)
    form.locator("button.execute").click()
    answer = form.locator(".live-responses-table .response")
    expect(answer.locator(".response-col_status")).to_contain_text("401")
    expect(answer.locator(".response-col_description")).to_contain_text('"code": "unauthenticated"')


def test_a_stream_that_is_tried_out_ends_and_shows_what_it_said(
    docs: Docs, stack: Stack, workspace: Workspace
) -> None:
    docs.authorize(stack.tokens["full_access"])
    form = docs.open("WatchEvents")
    form.locator("tr[data-param-name=workspace_id] input").fill(workspace.id)
    form.locator("button.execute").click()

    answer = form.locator(".live-responses-table .response")
    expect(answer.locator(".response-col_status")).to_contain_text("200", timeout=15_000)
    expect(answer.locator(".response-col_description")).to_contain_text(
        '"type":"workspace_provisioned"'
    )
    expect(answer.locator(".response-col_description")).to_contain_text(
        "this page reads a stream for 5 s"
    )
    expect(form.locator(".curl-command")).to_contain_text("curl")
    # The browser names what the page has left off reading.
    (aborted,) = docs.complaints
    assert f"/{workspace.id}/events: net::ERR_ABORTED" in aborted
