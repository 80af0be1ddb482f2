"""A reload forgets a key. The page says so, and a password manager can fill the key in."""

import re

from playwright.sync_api import expect

from tests.clients.console.console_page import Console
from tests.support.stack import Stack


def test_a_page_that_was_loaded_again_says_why_it_asks(console: Console, stack: Stack) -> None:
    page = console.page
    field = page.get_by_label("API key or session token")
    usual, again = re.compile("^This tab keeps"), re.compile("^You are asked because .* again")
    expect(field).to_have_accessible_description(usual)
    console.sign_in(stack.tokens["full_access"])
    expect(page.get_by_role("grid")).to_be_visible()
    page.reload()
    expect(field).to_have_accessible_description(again)
    # What password managers need: a form with a name and a password.
    form = page.locator("form").filter(has=field)
    expect(form.locator("[autocomplete=username]")).to_have_value("token")
    expect(field).to_have_attribute("autocomplete", "current-password")

    console.sign_in(stack.tokens["full_access"])
    page.get_by_role("button", name="Sign out").click()
    expect(field).to_have_accessible_description(usual)
    console.check()
