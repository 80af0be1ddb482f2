"""Names and docstrings of the Python client, from the names and comments of the protos."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from source import PACKAGE, Protos

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "client" / "evershell" / "client"
# The methods that do not have the name of their RPC.
METHODS = {
    "CancelTask": "cancel",
    "WatchEvents": "watch",
    "HoldOrg": "hold",
    "ReleaseOrg": "release",
    "CreateWebhook": "webhooks.create",
    "ListWebhooks": "webhooks.list",
    "DeleteWebhook": "webhooks.delete",
    "RotateWebhookSecret": "webhooks.rotate",
    "ReplayWebhook": "webhooks.replay",
    "ListWebhookDeliveries": "webhooks.deliveries",
}
# Fields that the client renames: a `reason` that is not the reason of a cancellation.
FIELDS = {"Task.reason": "end_reason", "TaskCompleted.reason": "end_reason"}
_WIDTH = 100


def method_name(rpc: str) -> str:
    """The client's method for this RPC, for example `webhooks.list`."""
    return METHODS.get(rpc) or snake_case(rpc)


def snake_case(name: str) -> str:
    """Converts GetTask to get_task."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def camel_case(name: str) -> str:
    """Converts get_task to GetTask."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def prose(comment: str, rpcs: list[str]) -> str:
    """The comment, with the names of the client's methods in place of the names of RPCs."""

    def method(match: re.Match[str]) -> str:
        return f"`{method_name(match[1])}`"

    # A name in backticks is the value of a field, not a reference to a method, so it stays.
    return re.sub(rf"(?<!`)\b({'|'.join(rpcs)})\b(?!`)", method, comment)


class Texts:
    """Turns the comments of the protos into texts for the client."""

    def __init__(self, protos: Protos) -> None:
        self._protos = protos
        self._rpcs = [method.name for method in protos.service.methods]

    def comment(self, full_name: str) -> str:
        """The comment of an element, with the client's names of methods and fields."""
        comment = prose(self._protos.comment(full_name), self._rpcs)
        for path, name in FIELDS.items():
            message, _, field = path.partition(".")
            if full_name.startswith(f"{PACKAGE}.{message}."):
                comment = comment.replace(f"`{field}`", f"`{name}`")
        return comment

    def with_limits(self, field: Any) -> str:
        """The comment of a field that callers set, with what it may hold."""
        rule = self._protos.option(field.GetOptions(), f"{PACKAGE}.field")
        parts = [self.comment(field.full_name).rstrip(), _limits(field, rule)]
        if field.message_type is not None and field.message_type.name == "Timestamp":
            parts.append("A time without a zone is local time.")
        return " ".join(filter(None, parts))


def _limits(field: Any, rule: Any) -> str:
    """A sentence about the limits of a field; empty if it has none."""
    if not rule.HasField("max"):
        return ""
    most, inner = f"{rule.max:,}", field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return (
            f"At most {most} entries, keys of 1 to {rule.max_key} characters, values of at most "
            f"{rule.max_value}."
        )
    if field.is_repeated:
        return f"At most {most}."
    if inner is not None:
        return f"At most {most} {'seconds' if inner.name == 'Duration' else 'USD'}."
    unit = " characters" if field.type == field.TYPE_STRING else ""
    least = f"{rule.min:,} to " if rule.HasField("min") else "At most "
    default = f", by default {rule.default_value:,}" if rule.HasField("default_value") else ""
    return f"{least}{most}{unit}{default}."


def summarized(comment: str) -> str:
    """The comment, with its first sentence as a separate paragraph.

    The comment stays one paragraph if the whole comment fits in a line, or if its first sentence
    is longer than a line.
    """
    text = " ".join(comment.split())
    first, dot, rest = text.partition(". ")
    if len(text) < _WIDTH - 10 or not dot or len(first) > _WIDTH - 8:
        return text
    return f"{first}.\n\n{rest}"


def docstring(text: str, indent: int) -> str:
    """The lines of a docstring. The first of several paragraphs is a summary in one line."""
    before = " " * indent
    paragraphs = text.split("\n\n")
    if len(paragraphs) == 1:
        return _filled(f'"""{" ".join(text.split())}"""', before)
    lines = [
        _block(f'"""{paragraphs[0]}', before),
        *(_block(each, before) for each in paragraphs[1:]),
    ]
    return "\n\n".join(lines) + f'\n{before}"""'


def _block(paragraph: str, before: str) -> str:
    """A paragraph, or lines that have their own indentation, such as the lines of `Args`."""
    if "\n " in paragraph:
        return textwrap.indent(paragraph, before)
    return _filled(" ".join(paragraph.split()), before)


def _filled(text: str, before: str, after: str | None = None) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=before,
        subsequent_indent=before if after is None else after,
        break_long_words=False,
        break_on_hyphens=False,
    )


def section(title: str, entries: list[tuple[str, str]]) -> str:
    """A section of a docstring within a class: a name and a text in each entry."""
    lines = [
        _filled(f"{name}: {' '.join(text.split())}" if name else text, " " * 12, " " * 16)
        for name, text in entries
    ]
    return textwrap.dedent("\n".join([f"{' ' * 8}{title}:", *lines]))


def formatted(path: Path, text: str) -> str:
    """The text of a module, formatted by ruff and without the imports that it does not use."""
    for command in (
        ["check", "--quiet", "--fix", "--select", "F401,I"],
        ["format", "--quiet"],
    ):
        text = subprocess.run(
            [Path(sys.executable).parent / "ruff", *command, "--stdin-filename", str(path), "-"],
            input=text,
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    return text
