"""A hook for mkdocs. Links to files outside docs/ become plain text: the site has only docs/."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]+\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page, in which links to files outside docs/ are plain text.

    Changes only pages directly in docs/. In the repository, `test_links.py` checks these links.
    """
    at_top = "/" not in page.file.src_uri
    return _OUTSIDE.sub(r"\1", markdown) if at_top else markdown
