"""A hook for mkdocs. The site has the pages of docs/, and deploy/README.md as `deployment.md`.

Links to other files become plain text. In the repository, `test_links.py` checks these links.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parents[1]
_DEPLOYMENT = re.compile(r"\]\(\.\./deploy/README\.md")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]+\)")
# Links of deploy/README.md to files beside it.
_BESIDE = re.compile(r"\[([^\]]+)\]\((?!https?:|#|\.\./docs/)[^)]+\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the page about the deployment."""
    text = _BESIDE.sub(r"\1", (_ROOT / "deploy" / "README.md").read_text())
    files.append(File.generated(config, "deployment.md", content=text.replace("../docs/", "")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page directly in docs/, in which links to files outside are plain text."""
    at_top = "/" not in page.file.src_uri
    return _OUTSIDE.sub(r"\1", _DEPLOYMENT.sub("](deployment.md", markdown)) if at_top else markdown
