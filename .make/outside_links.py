"""A hook of mkdocs: the site has only docs/, so links to files outside of it become plain text."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]+\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page. `test_links.py` checks the links that are removed."""
    at_top = "/" not in page.file.src_uri
    return _OUTSIDE.sub(r"\1", markdown) if at_top else markdown
