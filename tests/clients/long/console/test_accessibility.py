"""axe-core finds no problem on the pages of the console. A task can be cancelled by keyboard."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.clients.console.console_page import Console
from tests.clients.long.console.test_bundle import console as bundler  # noqa: F401 - a fixture
from tests.support.lengths import smoke
from tests.support.stack import Gate, Stack, Workspace

LOOKS = [("light", 1280), ("dark", 360), ("dark", 1280), ("light", 360)]


@pytest.fixture(params=smoke(LOOKS, LOOKS[:1]))
def console_with_axe(
    request: pytest.FixtureRequest,
    browser: Browser,
    stack: Stack,
    bundler: ModuleType,  # noqa: F811
) -> Iterator[Console]:
    scheme, width = request.param
    opened = Console(browser, stack.ready["rest_url"], scheme, width)
    axe: Path = bundler.node_modules() / "axe-core" / "axe.min.js"
    opened.context.add_init_script(path=axe)
    opened.page.reload()
    yield opened
    opened.close()


def violations(page: Page) -> list[tuple[str, str, list[str]]]:
    """The problems that axe-core finds, each with its elements."""
    found: dict[str, Any] = page.evaluate("() => axe.run()")
    return [
        (each["id"], each["help"], [node["html"] for node in each["nodes"]])
        for each in found["violations"]
    ]


def test_axe_finds_nothing(
    console_with_axe: Console, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    console, page = console_with_axe, console_with_axe.page
    assert violations(page) == []
    console.sign_in("sk_wrong")
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []

    workspace.begin("seq 1 100", f"seq 1 100; {gate.command}")
    console.sign_in(stack.tokens["full_access"])
    expect(page.locator(".rows .row").first).to_be_visible()
    assert violations(page) == []
    assert not is_wider_than_its_window(page)
    # Checks the list without a match, then the list with a selection and its dialog.
    console.find("there is no such workspace")
    expect(page.get_by_text("No workspace matches.")).to_be_visible()
    assert violations(page) == []
    console.find(workspace.id)
    console.rows.get_by_role("checkbox").check()
    page.get_by_role("button", name="Cancel this task…").click()
    expect(page.get_by_role("button", name="Finish")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.route("**/v1/**", lambda route: route.abort())
    expect(console.health).to_contain_text("no answer")
    console.health.locator("summary").click()
    assert violations(page) == []
    console.health.locator("summary").click()
    page.unroute("**/v1/**")

    page.get_by_role("link", name="Stop everything").click()
    expect(page.get_by_label(re.compile("Type the number"))).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was cancelled")
    assert violations(page) == []
    assert not is_wider_than_its_window(page)
    page.get_by_role("link", name="All workspaces").click()

    page.get_by_role("link", name="Last hour").click()
    expect(page.get_by_role("heading", name="The last hour")).to_be_focused()
    expect(page.get_by_text("Looking up the last hour")).to_be_hidden()
    assert violations(page) == []
    assert not is_wider_than_its_window(page)
    page.get_by_role("link", name="All workspaces").click()

    console.open(workspace.id)
    expect(console.log).to_contain_text("Iteration 1 completed")
    expect(page.get_by_label("Last output")).to_contain_text("100")
    assert violations(page) == []
    page.locator("summary").first.click()
    page.get_by_role("button", name="Cancel this task").click()
    assert violations(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Finish").click()
    expect(console.step("Accepted")).to_be_visible()
    assert violations(page) == []
    gate.open()
    expect(console.step("Cancelled")).to_be_visible()
    assert violations(page) == []
    assert not is_wider_than_its_window(page)


def is_wider_than_its_window(page: Page) -> bool:
    return bool(page.evaluate("() => document.documentElement.scrollWidth > window.innerWidth"))


@pytest.mark.soak
def test_the_keyboard_is_enough(
    console: Console, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    workspace.begin(gate.command)
    page, keyboard = console.page, console.page.keyboard
    expect(page.get_by_label("API key or session token")).to_be_focused()
    keyboard.insert_text(stack.tokens["full_access"])
    keyboard.press("Enter")
    expect(page.get_by_role("searchbox")).to_be_focused()
    keyboard.insert_text(workspace.id)
    expect(console.rows).to_have_count(1)
    keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()

    button = page.get_by_role("button", name="Cancel this task")
    expect(button).to_be_visible()
    for _ in range(10):
        keyboard.press("Tab")
        if button.evaluate("element => element === document.activeElement"):
            break
    keyboard.press("Enter")
    choice = page.get_by_role("button", name="Finish")
    expect(choice).to_be_focused()
    keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(button).to_be_focused()
    keyboard.press("Enter")
    expect(choice).to_be_focused()
    for _ in range(3):
        keyboard.press("Tab")
    keyboard.insert_text("by keyboard")
    keyboard.press("Enter")
    expect(console.step("Accepted")).to_contain_text("reason: by keyboard")
    gate.open()
    expect(console.step("Cancelled")).to_be_visible()
    # A screen reader announces the end of the task.
    status = page.get_by_role("status")
    expect(status).to_contain_text(re.compile("Task cancelled|The cancellation: accepted"))
