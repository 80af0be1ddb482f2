"""A newcomer's walk: what README.md says to type does what README.md says."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evershell.workspace.v1 import error_pb2, workspace_service_pb2
from google.api import annotations_pb2

from tests.support.stack import ROOT, Stack

SLUGS = error_pb2.Error.ErrorCode.DESCRIPTOR.values_by_number
README = (ROOT / "README.md").read_text()
# Between what one block prints and what the next does.
MARK = "\x1e"
# A fenced block, with its language.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WALK_SECONDS = 60


@dataclass(frozen=True)
class Step:
    """One block of commands, and the block that shows what they print."""

    commands: str
    shown: str


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def steps() -> list[Step]:
    """A block of commands that no output follows prints nothing."""
    found = BLOCK.findall(section("Stop a task"))
    following = [*found[1:], ("sh", "")]
    return [
        Step(text, "" if after == "sh" else shown)
        for (language, text), (after, shown) in zip(found, following, strict=True)
        if language == "sh"
    ]


def shape(value: Any) -> Any:
    """Names and types, recursively; the values are free."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [list, *map(shape, value)]
    return type(value).__name__


def told(message: Any) -> Any:
    """What an event says, but for its values."""
    return message["event"]["type"], shape(message)


def is_object(text: str) -> bool:
    return text.startswith("{")


def events(text: str) -> list[Any]:
    """The messages of a stream, of which every line is one or empty."""
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: {") for line in lines), text
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def walk(stack: Stack, folder: Path) -> list[str]:
    """Types all that README.md says, in one shell and in a folder as `make run` leaves it; returns
    what each block printed.
    """
    (folder / ".state").symlink_to(stack.state_dir)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    script = "".join(f"{step.commands}printf '{MARK}'\n" for step in steps())
    names = ("TOKEN", "REST_URL", "GRPC_ADDR", "WORKSPACE_ID")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WALK_SECONDS,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split(MARK)[:-1]


def test_each_call_prints_what_is_shown(stack: Stack, tmp_path: Path) -> None:
    expected = steps()
    assert len(expected) >= 6

    printed = walk(stack, tmp_path)

    assert len(printed) == len(expected)
    (task_id,) = {
        answer["task_id"]
        for answer in map(json.loads, filter(is_object, printed))
        if "task_id" in answer
    }
    for step, output in zip(expected, printed, strict=True):
        if step.shown.startswith("data: "):
            # What other tests did in this workspace before is in its log too.
            seen = [
                message
                for message in events(output)
                if "event" in message and message["event"]["task_id"] == task_id
            ]
            for message in events(step.shown):
                assert told(message) in map(told, seen), f"{step.commands}{output}"
        elif is_object(step.shown):
            assert shape(json.loads(output)) == shape(json.loads(step.shown)), (
                f"{step.commands}{output}"
            )
        else:
            assert (output, step.shown) == ("", ""), step.commands


def test_what_is_shown_tells_one_story() -> None:
    answers = [json.loads(step.shown) for step in steps() if is_object(step.shown)]
    stream = [
        message["event"]
        for step in steps()
        if step.shown.startswith("data: ")
        for message in events(step.shown)
    ]
    ended = stream[-1]
    assert {answer["task_id"] for answer in answers if "task_id" in answer} == {ended["task_id"]}
    assert [answer["outcome"] for answer in answers if "outcome" in answer] == [
        "accepted",
        "already_requested",
    ]
    assert (ended["type"], ended["task_completed"]["status"]) == ("task_completed", "cancelled")
    assert [int(event["seq"]) for event in stream] == sorted(int(event["seq"]) for event in stream)


def test_the_task_outlasts_a_slow_reader() -> None:
    """Each step is long enough to read on, and the walk ends it by force."""
    calls = section("Stop a task")
    (description,) = re.findall(r'-d \'{"description": "(.*)"}\'', calls)
    assert all(int(step.removeprefix("sleep ")) >= 300 for step in description.split("\\n"))
    assert '"force_after"' in calls
    assert '"forced":true' in calls


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)[^)]*\)", README))))
def test_a_link_leads_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


def test_the_table_of_calls_is_that_of_the_protos() -> None:
    table = set()
    for row in re.findall(
        r"^\| (\w+) \| (.*) \| (\d+)[^|]*\|([^|]*)\|$", section("Calls"), re.MULTILINE
    ):
        for method, path in re.findall(r"([A-Z]+) `([^`?]+)[^`]*`", row[1]):
            table.add((row[0], method, path, int(row[2]), *re.findall(r"`(\w+)`", row[3])))
    bindings = set()
    for rpc in workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].methods:
        options = rpc.GetOptions()
        http = options.Extensions[annotations_pb2.http]
        for rule in (http, *http.additional_bindings):
            verb = rule.WhichOneof("pattern")
            edge = options.Extensions[workspace_service_pb2.edge]
            slugs = [SLUGS[number].name for number in edge.errors]
            bindings.add((rpc.name, verb.upper(), getattr(rule, verb), edge.success_status, *slugs))
    assert table == bindings


def test_the_errors_of_every_call_are_those_of_the_protos() -> None:
    (sentence,) = re.findall(
        r"^Every call may also answer (.*?), or what", section("Calls"), re.MULTILINE | re.DOTALL
    )
    service = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
    slugs = {
        SLUGS[number]
        for number in service.GetOptions().Extensions[workspace_service_pb2.every_call].errors
    }
    of_the_service = {
        slug.name for slug in slugs if not slug.GetOptions().Extensions[error_pb2.rule].edge_only
    }
    assert set(re.findall(r"`(\w+)`", sentence)) == of_the_service
