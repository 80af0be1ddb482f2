"""The command `top`: its screen, what it reads, and the table that it prints into a pipe."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from queue import SimpleQueue
from typing import Any

import pytest
from rich.console import Console

from evershell.cli.keyboard import read_keys
from evershell.cli.running import Reading, Readings, Row, Running
from evershell.cli.screen import Screen
from evershell.cli.show import elapsed
from evershell.client import (
    Answer,
    CallError,
    OrganizationEvent,
    Task,
    TaskPhase,
    TaskStatus,
    UnavailableError,
    Usage,
    Workspace,
)
from tests.support.waiting import eventually
from tests.unit.cli.fake_client import AT, FakeClient, run


def row(number: int, minutes: int, cost: str = "0", **fields: Any) -> Row:
    task = Task(
        f"task_{number}",
        f"ws_{number}",
        f"work {number}",
        TaskStatus.RUNNING,
        TaskPhase.TOOL_CALL,
        created_at=AT - timedelta(minutes=minutes),
        usage=Usage(cost=Decimal(cost)),
        **fields,
    )
    return Row(task, f"name {number}")


def reading(*rows: Row) -> Reading:
    return Reading(rows, AT)


def drawn(screen: Screen, columns: int = 80, lines: int = 12) -> list[str]:
    output = StringIO()
    console = Console(file=output, width=columns, height=lines, color_system=None)
    console.print(screen.render(columns, lines))
    return [line.rstrip() for line in output.getvalue().splitlines()]


class Cancelled:
    """A screen with three tasks, and the tasks that were cancelled on it."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.screen = Screen("time", lambda row: self.rows.append(row.task.id))
        self.screen.take(reading(row(1, 5), row(2, 60), row(3, 90, "1.50")))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.screen.press(key)


def test_the_longest_running_task_or_the_most_expensive_one_is_first() -> None:
    screen = Cancelled().screen
    screen.take(reading(row(1, 5), row(2, 60, "2"), row(3, 90, "1.50")))
    by_time = drawn(screen)
    assert by_time[0] == "3 tasks running, by time, 22:13:20 UTC"
    assert by_time[1].split() == ["RUNNING", "ITER", "NOW", "COST", "WORKSPACE", "TASK"]
    assert [line.split()[-1] for line in by_time[2:5]] == ["3", "2", "1"]
    assert by_time[2].split() == [
        "1:30",
        "h",
        "0",
        "tool",
        "call",
        "1.50",
        "name",
        "3",
        "work",
        "3",
    ]
    screen.press("s")
    assert [line.split()[-1] for line in drawn(screen)[2:5]] == ["2", "3", "1"]


def test_a_task_is_cancelled_after_one_confirmation() -> None:
    way = Cancelled()
    way.press("down", "c")
    assert any("Cancel task task_2 in name 2 (ws_2)?" in line for line in drawn(way.screen, 200))
    assert way.rows == []
    way.press("y")
    assert way.rows == ["task_2"]
    way.screen.tell("accepted: task task_2")
    assert "accepted: task task_2" in drawn(way.screen)


@pytest.mark.parametrize("key", ["n", "enter", "c", "Y", "escape", "q"])
def test_any_other_answer_cancels_nothing(key: str) -> None:
    way = Cancelled()
    way.press("c", key, "y")
    assert (way.rows, way.screen.is_over) == ([], False)
    assert "Nothing was cancelled." in drawn(way.screen)


def test_no_new_order_moves_another_task_under_the_cursor() -> None:
    way = Cancelled()
    way.press("down")
    # Task 2 is now the first row.
    way.screen.take(reading(row(1, 5), row(2, 60), row(3, 1)))
    way.press("c", "y")
    # The answer still applies to the task that the question named, even if the table has changed.
    way.press("c")
    way.screen.take(reading(row(1, 5), row(3, 1)))
    way.press("y")
    assert way.rows == ["task_2", "task_2"]
    # The selected task has ended, so the next task takes its place.
    way.press("c", "y")
    assert way.rows[-1] == "task_1"


def test_nothing_can_be_cancelled_where_nothing_runs() -> None:
    way = Cancelled()
    way.screen.take(reading())
    way.press("c", "y", "down", "up")
    assert way.rows == []
    assert drawn(way.screen)[0] == "0 tasks running, by time, 22:13:20 UTC"
    way.press("q")
    assert way.screen.is_over


@pytest.mark.parametrize(("columns", "lines"), [(60, 10), (40, 8), (200, 50)])
def test_a_screen_of_any_size_shows_the_selected_row_and_the_keys(columns: int, lines: int) -> None:
    screen = Screen("time", lambda row: None)
    screen.take(reading(*(row(number, number) for number in range(100))))
    for key in (*["down"] * 50, "c"):
        screen.press(key)
    shown = drawn(screen, columns, lines)
    assert len(shown) <= lines and all(len(line) <= columns for line in shown)
    assert any(line.startswith("49:") for line in shown)
    assert "q quit" in shown[-1]
    assert "Cancel task task_49" in " ".join(shown)


def test_untrusted_text_and_a_service_that_is_away_are_shown() -> None:
    way = Cancelled()
    way.screen.take(reading(row(1, 5, cancel_requested_at=AT)))
    way.screen.fail("unavailable: \x1b[2J")
    text = "\n".join(drawn(way.screen, 120))
    assert r"at 22:13:20 UTC. unavailable: \x1b[2J" in text and "cancelling" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-60, "0 s"), (59, "59 s"), (65, "1:05 min"), (7_500, "2:05 h"), (273_600, "3 d 4 h")],
)
def test_a_duration_is_short(seconds: int, text: str) -> None:
    assert elapsed(timedelta(seconds=seconds)) == text


def test_a_key_that_arrives_in_parts_is_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    read = os.read
    with os.fdopen(reader) as typed, os.fdopen(writer, "wb") as keys:
        monkeypatch.setattr(sys, "stdin", typed)
        monkeypatch.setattr(os, "read", lambda descriptor, _: read(descriptor, 1))
        keys.write(b"\x1b[B\x1bOA\x1b[3~c\x1b")
        keys.flush()
        pressed = [key for _ in range(5) for key in read_keys(0)]
    assert pressed == ["down", "up", "delete", "c", "escape"]


class Service:
    """A client with busy workspaces. It records the calls."""

    def __init__(self, count: int) -> None:
        self.rows = [row(number, number) for number in range(count)]
        self.calls: list[str] = []
        self.is_away = False
        # What the stream of events yields, or the error with which it ends.
        self.stream: SimpleQueue[OrganizationEvent | CallError] = SimpleQueue()

    def with_options(self, *, on_answer: Any) -> Any:
        self.on_answer = on_answer
        return self

    def list_tasks(self, *, active: bool, page_size: int) -> list[Task]:
        self.calls.append("ListTasks")
        if self.is_away:
            raise UnavailableError("The service is away.")
        date = "Tue, 14 Nov 2023 22:13:20 GMT"
        self.on_answer(Answer("ListTasks", "request_1", {"date": date}))
        return [row.task for row in self.rows] if active else []

    def list_workspaces(self, workspace_ids: list[str], page_size: int) -> list[Workspace]:
        self.calls.append(f"ListWorkspaces {len(workspace_ids)}")
        named = [row for row in self.rows if row.task.workspace_id in workspace_ids]
        return [Workspace(row.task.workspace_id, name=row.name) for row in named]

    def watch_organization(self, *, reconnect_for: float) -> Iterator[OrganizationEvent]:
        assert reconnect_for == 0
        while isinstance(item := self.stream.get(), OrganizationEvent):
            yield item
        raise item


def test_a_reading_is_one_list_of_tasks() -> None:
    service: Any = Service(250)
    running = Running(service)
    first = running.read()
    assert first.rows == tuple(service.rows)
    # This is the time of the service, not of this machine.
    assert abs(first.at - AT) < timedelta(seconds=5)
    del service.rows[249]
    assert running.read().rows == tuple(service.rows)
    # A call names at most 200 workspaces. Later, only the names of new ones are read.
    assert service.calls == ["ListTasks", "ListWorkspaces 200", "ListWorkspaces 50", "ListTasks"]
    service.rows.append(row(250, 1))
    assert running.read().rows == tuple(service.rows)
    assert service.calls[4:] == ["ListTasks", "ListWorkspaces 1"]


class Follower:
    """Readings of a service whose stream the test sends."""

    def __init__(self, **pauses: float) -> None:
        client: Any = Service(1)
        self.service: Service = client
        self._seen: SimpleQueue[Reading | str] = SimpleQueue()
        put = self._seen.put
        self.readings = Readings(client, Running(client), put, put, **pauses)

    def __enter__(self) -> "Follower":
        self.readings.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.readings.end()
        self.service.stream.put(UnavailableError("The test has ended."))

    def send(self, *items: OrganizationEvent | CallError) -> None:
        for each in items:
            self.service.stream.put(each)

    def await_next(self) -> Reading | str:
        return self._seen.get(timeout=60)

    def count_reads(self) -> int:
        return self.service.calls.count("ListTasks")


HEARTBEAT = OrganizationEvent(1, None)


def test_the_table_is_read_only_after_a_message_of_the_stream() -> None:
    with Follower(least_seconds=0, settle_seconds=0) as follower:
        follower.await_next()
        for count in range(2, 5):
            follower.send(HEARTBEAT)
            follower.await_next()
            assert follower.count_reads() == count


def test_messages_that_come_together_cause_one_read_and_a_cancellation_does_not_wait() -> None:
    with Follower(least_seconds=600, settle_seconds=600) as follower:
        follower.await_next()
        follower.send(*[HEARTBEAT] * 9)
        eventually(follower.service.stream.empty)
        assert follower.count_reads() == 1
        follower.readings.hurry()
        follower.await_next()
        assert follower.count_reads() == 2


def test_the_table_says_that_the_service_is_away_until_it_is_back() -> None:
    with Follower(least_seconds=0, settle_seconds=0) as follower:
        assert isinstance(follower.await_next(), Reading)
        follower.service.is_away = True
        follower.send(UnavailableError("The stream has broken."))
        assert follower.await_next() == "unavailable: The service is away."
        follower.service.is_away = False
        follower.send(HEARTBEAT)
        assert isinstance(follower.await_next(), Reading)


def test_a_pipe_gets_the_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    service: Any = Service(2)
    listed = FakeClient()
    monkeypatch.setattr(listed, "with_options", service.with_options)
    table = run(monkeypatch, listed, "top")
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["TASK", "task_1", "task_0"]
    as_json = run(monkeypatch, listed, "top", "--json")
    assert [task["id"] for task in json.loads(as_json.stdout)["tasks"]] == ["task_1", "task_0"]
