from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.clients.console.console_page import Console
from tests.support.stack import Stack


@pytest.fixture
def console(browser: Browser, stack: Stack) -> Iterator[Console]:
    opened = Console(browser, stack.ready["rest_url"])
    yield opened
    opened.close()
