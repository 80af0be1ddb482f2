"""The bench checks in the database that accepted cancellations were recorded completely."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from evershell.workspace.v1 import event_pb2, workspace_service_pb2
from google.protobuf import timestamp_pb2
from google.protobuf.json_format import Parse
from psycopg.types.json import Jsonb

from bench import arming
from bench.arming import Armed, WrongOutcomeError
from bench.rows import replay
from bench.servers import floor

Database = psycopg.Connection[Any]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        arming.prepare_floor(connection, 1)
        yield connection
        connection.execute("DROP SCHEMA bench_floor CASCADE")


@pytest.fixture
def armed(database: Database) -> Armed:
    return arming.arm(database, 5, ["127.0.0.1:1", "127.0.0.2:1"])


def record(database: Database, workspace_id: str) -> None:
    now = datetime.now(UTC)
    values = (arming.ORG_ID, workspace_id, "bench", "api_key", now, "", "r", Jsonb({}))
    row = database.execute(floor.RECORD, values).fetchone()
    assert row is not None and row[0] is not None


@pytest.mark.parametrize("earlier", [0, 2])
def test_recorded_cancellations_are_counted(database: Database, armed: Armed, earlier: int) -> None:
    for number in range(earlier):
        record(database, armed.workspace_ids[number])
        armed = arming.arm_again(database, armed)
    arming.check(database, armed, 0)
    for workspace_id in armed.workspace_ids[:3]:
        record(database, workspace_id)
    arming.check(database, armed, 3)
    for wrong in (2, 4):
        with pytest.raises(WrongOutcomeError, match=f"{wrong} cancellations were accepted"):
            arming.check(database, armed, wrong)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM events WHERE workspace_id = %s AND seq = 4",
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


def test_the_floor_does_not_write_into_tables_of_the_service(
    database: Database, armed: Armed
) -> None:
    record(database, armed.workspace_ids[0])
    written = database.execute("SELECT id FROM public.workspaces WHERE id LIKE 'ws_b%'").fetchall()
    assert written == []
