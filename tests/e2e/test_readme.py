"""The commands of README.md print what README.md shows."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import pytest
from evershell.workspace.v1 import error_pb2, workspace_service_pb2
from google.api import annotations_pb2

from tests.support.stack import ROOT, Stack

SLUGS = error_pb2.Error.ErrorCode.DESCRIPTOR.values_by_number
README = (ROOT / "README.md").read_text()
# Separates the outputs of two blocks.
MARK = "\x1e"
# A fenced block: its language and its text.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN_SECONDS = 60


@dataclass(frozen=True)
class Step:
    """One block of commands, and the block of its expected output."""

    commands: str
    expected: str


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def steps() -> list[Step]:
    """Reads the steps. A block of commands without an output block must print nothing."""
    found = BLOCK.findall(section("Stop a task"))
    following = [*found[1:], ("sh", "")]
    return [
        Step(text, "" if next_language == "sh" else output)
        for (language, text), (next_language, output) in zip(found, following, strict=True)
        if language == "sh"
    ]


def shape(value: Any) -> Any:
    """The names and types of a JSON value, without its values."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [list, *map(shape, value)]
    return type(value).__name__


def event_shape(message: Any) -> Any:
    """The type and the shape of an event, without its values."""
    return message["event"]["type"], shape(message)


def is_object(text: str) -> bool:
    return text.startswith("{")


def events(text: str) -> list[Any]:
    """The messages of a stream, as a library for Server-Sent Events reads them."""
    response = httpx.Response(
        200, headers={"content-type": "text/event-stream"}, text=text.rstrip() + "\n\n"
    )
    found = []
    for event in httpx_sse.EventSource(response).iter_sse():
        message = event.json()
        assert (event.id, event.event) == (message["event"]["seq"], message["event"]["type"])
        found.append(message)
    return found


def run_steps(stack: Stack, folder: Path) -> list[str]:
    """Runs all steps in one shell, in a folder as `make run` leaves it. Returns their outputs."""
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
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split(MARK)[:-1]


def test_each_call_prints_the_output_in_the_readme(stack: Stack, tmp_path: Path) -> None:
    all_steps = steps()
    assert len(all_steps) >= 6

    printed = run_steps(stack, tmp_path)

    assert len(printed) == len(all_steps)
    (task_id,) = {
        answer["task_id"]
        for answer in map(json.loads, filter(is_object, printed))
        if "task_id" in answer
    }
    for step, output in zip(all_steps, printed, strict=True):
        if step.expected.startswith("event: "):
            # The log also has events of other tests in this workspace.
            seen = [
                message
                for message in events(output)
                if "event" in message and message["event"]["task_id"] == task_id
            ]
            for message in events(step.expected):
                assert event_shape(message) in map(event_shape, seen), f"{step.commands}{output}"
        elif is_object(step.expected):
            assert shape(json.loads(output)) == shape(json.loads(step.expected)), (
                f"{step.commands}{output}"
            )
        else:
            assert (output, step.expected) == ("", ""), step.commands


def test_the_outputs_in_the_readme_are_consistent() -> None:
    answers = [json.loads(step.expected) for step in steps() if is_object(step.expected)]
    stream = [
        message["event"]
        for step in steps()
        if step.expected.startswith("event: ")
        for message in events(step.expected)
    ]
    ended = stream[-1]
    assert {answer["task_id"] for answer in answers if "task_id" in answer} == {ended["task_id"]}
    assert [answer["outcome"] for answer in answers if "outcome" in answer] == [
        "accepted",
        "already_requested",
    ]
    assert (ended["type"], ended["task_completed"]["status"]) == ("task_completed", "cancelled")
    assert [int(event["seq"]) for event in stream] == sorted(int(event["seq"]) for event in stream)


def test_the_task_runs_longer_than_a_reader_needs() -> None:
    """Each command takes 300 s or more. The steps end the task with `force_after`."""
    calls = section("Stop a task")
    (description,) = re.findall(r'-d \'{"description": "(.*)"}\'', calls)
    assert all(int(step.removeprefix("sleep ")) >= 300 for step in description.split("\\n"))
    assert '"force_after"' in calls
    assert '"forced":true' in calls


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)[^)]*\)", README))))
def test_the_target_of_a_link_exists(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


def test_the_table_of_calls_matches_the_protos() -> None:
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
            if verb is None:
                continue
            edge = options.Extensions[workspace_service_pb2.edge]
            slugs = [SLUGS[number].name for number in edge.errors]
            bindings.add((rpc.name, verb.upper(), getattr(rule, verb), edge.success_status, *slugs))
    assert table == bindings


def test_the_common_errors_match_the_protos() -> None:
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
