"""Takes the pictures of docs/console.md: `python -m tests.clients.long.console.pictures`."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, expect, sync_playwright

from tests.clients.long.console.console_page import Console
from tests.support.browser import QUIET, executable
from tests.support.stack import ROOT, Gate, Stack, Workspace

FOLDER = ROOT / "docs" / "console"
NAMES = ("nightly build", "triage", "dependency updates", "flaky tests", "release notes")
TASKS = (
    "echo 'Compile the modules'\n{gate}",
    "echo 'Read the new reports'\nseq 1 40\n{gate}",
    "echo 'Update the lock files'\n{gate}",
)


def main() -> None:
    with ExitStack() as resources:
        folder = resources.enter_context(tempfile.TemporaryDirectory())
        stack = Stack(Path(folder) / "state")
        resources.callback(stack.kill_if_running)
        stack.start()
        playwright = resources.enter_context(sync_playwright())
        path = executable()
        assert path is not None, "apt-get install chromium"
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        resources.callback(browser.close)
        made = [Workspace(stack, name=name) for name in NAMES]
        for each, task in zip(made, TASKS, strict=False):
            each.begin(*task.format(gate=Gate(each).command).split("\n"))
        FOLDER.mkdir(parents=True, exist_ok=True)
        _take(stack, browser, made)


def _take(stack: Stack, browser: Browser, made: list[Workspace]) -> None:
    with _signed_in(stack, browser) as console:
        expect(console.row("tool call")).to_have_count(len(TASKS))
        _picture(console, "list")
        console.page.get_by_role("link", name="Stop everything").click()
        console.page.get_by_label("Reason").fill("the agents delete what they should not")
        console.page.get_by_label("Type the number").fill("3")
        _picture(console, "stop")
    with _signed_in(stack, browser, "dark", 420) as console:
        expect(console.row("tool call")).to_have_count(len(TASKS))
        _picture(console, "narrow")
    with _signed_in(stack, browser) as console:
        console.open(made[1].id)
        console.cancel(reason="it reads the wrong reports")
        expect(console.step("Accepted")).to_be_visible()
        _picture(console, "waiting")
        Gate(made[1]).open()
        expect(console.step("Cancelled")).to_be_visible()
        _picture(console, "cancelled")
    with _signed_in(stack, browser) as console:
        console.open(made[2].id)
        with stack.frozen_process(stack.agent_pid(made[2].id)):
            console.cancel()
            note = console.cancellation.get_by_role("alert")
            expect(note).to_contain_text("The agent does not answer.")
            _picture(console, "unreachable")


@contextmanager
def _signed_in(
    stack: Stack,
    browser: Browser,
    scheme: Literal["dark", "light"] = "light",
    width: int = 1100,
) -> Iterator[Console]:
    console = Console(browser, stack.ready["rest_url"], scheme, width)
    console.sign_in(stack.tokens["owner"])
    expect(console.page.locator(".rows .row").first).to_be_visible()
    yield console
    console.close()


def _picture(console: Console, name: str) -> None:
    console.page.screenshot(path=FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
