"""What the bench counts in the database, against the floor's own way to record a cancellation."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from evershell.workspace.v1 import event_pb2, workspace_service_pb2
from google.protobuf import timestamp_pb2
from google.protobuf.json_format import Parse
from psycopg.types.json import Jsonb

from tests.bench import arming
from tests.bench.arming import Armed, WrongOutcomeError
from tests.bench.rows import replay
from tests.bench.servers import floor
from tests.bench.servers.floor import RECORD
from tests.support.waiting import eventually

Database = psycopg.Connection[Any]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        arming.prepare_floor(connection, 1)
        yield connection
        connection.execute("DROP TABLE bench_rows")
        connection.execute("DROP FUNCTION bench_record_cancellation")


@pytest.fixture
def armed(database: Database) -> Armed:
    return arming.arm(database, 5, "127.0.0.1:1")


def record(database: Database, workspace_id: str) -> None:
    now = datetime.now(UTC)
    values = (arming.ORG_ID, False, None, workspace_id, None, "bench", "api_key", now, "", "r")
    row = database.execute(RECORD, (*values, None, Jsonb({}))).fetchone()
    assert row == (True,)


def test_recorded_cancellations_are_counted(database: Database, armed: Armed) -> None:
    arming.check(database, armed, 0)
    for workspace_id in armed.workspace_ids[:3]:
        record(database, workspace_id)
    arming.check(database, armed, 3)
    for wrong in (2, 4):
        with pytest.raises(WrongOutcomeError, match=f"{wrong} cancellations were accepted"):
            arming.check(database, armed, wrong)


def test_each_window_is_counted_by_itself(database: Database, armed: Armed) -> None:
    record(database, armed.workspace_ids[0])
    another = arming.arm(database, 2, "127.0.0.1:1")
    arming.check(database, another, 0)
    arming.check(database, armed, 1)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM events WHERE workspace_id = %s AND seq = 4",
        "UPDATE events SET seq = 5 WHERE workspace_id = %s AND seq = 4",
        "UPDATE events SET type = 'iteration_completed' WHERE workspace_id = %s AND seq = 4",
        "INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, payload) "
        "SELECT workspace_id, 5, 'iteration_completed', time, task_id, request_id, payload "
        "FROM events WHERE workspace_id = %s AND seq = 4",
        "UPDATE workspaces SET last_seq = 3 WHERE id = %s",
        "UPDATE tasks SET status = 'cancelled', completed_at = now() WHERE workspace_id = %s",
        "UPDATE tasks SET cancel_requested_by = NULL, cancel_credential_kind = NULL, "
        "cancel_requested_at = NULL, cancel_reason = NULL, cancel_request_id = NULL "
        "WHERE workspace_id = %s",
    ],
)
def test_a_cancellation_that_is_not_whole_is_found(
    database: Database, armed: Armed, damage: str
) -> None:
    record(database, armed.workspace_ids[0])
    arming.check(database, armed, 1)
    assert database.execute(damage.encode(), (armed.workspace_ids[0],)).rowcount == 1
    for accepted in (0, 1):
        with pytest.raises(WrongOutcomeError):
            arming.check(database, armed, accepted)


def test_a_task_that_nobody_cancelled_but_ended_is_found(database: Database, armed: Armed) -> None:
    database.execute(
        "UPDATE tasks SET status = 'completed', completed_at = now() WHERE workspace_id = %s",
        (armed.workspace_ids[0],),
    )
    with pytest.raises(WrongOutcomeError):
        arming.check(database, armed, 0)


def test_only_the_workspaces_of_the_bench_are_removed(database: Database, armed: Armed) -> None:
    database.execute(
        "INSERT INTO workspaces (id, org_id, name, status, status_reason, created_at, updated_at, "
        "epoch, last_seq) VALUES ('ws_bench', 'org', '', 'idle', '', now(), now(), 1, 0)"
    )
    arming.create_log(database, 10, "127.0.0.1:1")
    arming.remove(database)
    assert database.execute("SELECT id FROM workspaces").fetchall() == [("ws_bench",)]
    for table in ("tasks", "events"):
        assert database.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,)


def test_removing_waits_for_a_controller_that_ends_a_task(
    database: Database, armed: Armed, database_url: str
) -> None:
    """Otherwise its event stays, and belongs to the next workspace of this name."""
    ended = armed.workspace_ids[0]
    with (
        psycopg.connect(database_url) as controller,
        psycopg.connect(database_url, autocommit=True) as removing,
        ThreadPoolExecutor(1) as pool,
    ):
        controller.execute("SELECT 1 FROM workspaces WHERE id = %s FOR UPDATE", (ended,))
        removal = pool.submit(arming.remove, removing)
        waits = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
        eventually(lambda: database.execute(waits, (removing.info.backend_pid,)).fetchone())
        controller.execute(
            "INSERT INTO events (workspace_id, seq, type, time, payload) "
            "VALUES (%s, 4, 'workspace_failed', now(), '{}')",
            (ended,),
        )
        controller.commit()
        removal.result()
    left = "SELECT count(*) FROM events WHERE workspace_id = %s"
    assert database.execute(left, (ended,)).fetchone() == (0,)


def test_a_long_log_has_no_gap(database: Database) -> None:
    workspace_id = arming.create_log(database, 20, "127.0.0.1:1")
    row = database.execute(
        "SELECT count(*), min(seq), max(seq) FROM events WHERE workspace_id = %s", (workspace_id,)
    ).fetchone()
    assert row == (20, 1, 20)
    found = database.execute("SELECT last_seq FROM workspaces").fetchone()
    assert found == (20,)


def test_the_events_of_a_replayed_log_have_the_fields_and_the_size_of_real_ones() -> None:
    iteration = Parse(arming.ITERATION, event_pb2.IterationCompleted())
    event = event_pb2.Event(
        seq=10_000,
        workspace_id="ws_b1_1",
        task_id="task_b1_1",
        time=timestamp_pb2.Timestamp(seconds=1_800_000_000, nanos=123_456_000),
        iteration_completed=iteration,
    )
    size = len(workspace_service_pb2.WatchEventsResponse(event=event).SerializeToString())
    assert abs(size - replay.MESSAGE_BYTES) <= 8, size


def test_the_durable_floor_runs_its_own_statement() -> None:
    defined = re.search(r"FUNCTION (\w+)\(", floor.RECORD_FUNCTION)
    assert defined and f"FROM {defined[1]}(" in floor.RECORD
