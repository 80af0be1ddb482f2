"""The fence after a restore: epochs, refusals, and what the command says.

test_fence_states.py has each state of a workspace, test_fence_races.py has other programs.
"""

from importlib import resources

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from evershell.commands.fence import fence as command
from evershell.core.errors import OperatorError
from evershell.store.connections import Pool, conninfo
from evershell.store.fence import fence

_WORKSPACE = """
    INSERT INTO workspaces (
        id, org_id, name, status, status_reason, created_at, updated_at, epoch, last_seq, run_id
    ) VALUES (%s, 'org_1', '', %s, '', now(), now(), %s, 0, %s)
"""


def epochs(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT id, epoch FROM workspaces").fetchall())


def run_ids(url: str) -> dict[str, str | None]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT id, run_id FROM workspaces").fetchall())


def add(url: str, *workspaces: tuple[str, str, int, str | None]) -> None:
    with psycopg.connect(url) as connection:
        for workspace in workspaces:
            connection.execute(_WORKSPACE, workspace)


def test_epochs_are_beyond_those_of_a_history_that_was_lost(database_url: str) -> None:
    add(database_url, ("ws_1", "idle", 3, "run"), ("ws_2", "stopped", 8, None))
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT extract(epoch FROM now())::bigint").fetchone()
    assert row is not None
    assert fence(database_url) == 2
    assert all(row[0] <= epoch <= row[0] + 60 for epoch in epochs(database_url).values())


def test_each_fence_moves_each_epoch(database_url: str) -> None:
    """Also twice within a second, and if the clock was set back."""
    far = 2**40
    add(database_url, ("ws_1", "idle", 1, "run"), ("ws_2", "idle", far, "run"))
    seen = [epochs(database_url)]
    for _ in range(3):
        fence(database_url)
        seen.append(epochs(database_url))
    for name in ("ws_1", "ws_2"):
        assert len({each[name] for each in seen}) == len(seen)
    assert seen[-1]["ws_2"] == far + 3


def test_only_a_pod_that_was_placed_belongs_to_another_run(database_url: str) -> None:
    add(
        database_url,
        ("ws_1", "busy", 1, "run"),
        ("ws_2", "provisioning", 1, None),
        ("ws_3", "failed", 1, None),
    )
    fence(database_url)
    assert run_ids(database_url) == {"ws_1": "fenced", "ws_2": None, "ws_3": None}


async def test_a_database_in_use_is_refused(database_url: str, pool: Pool) -> None:
    add(database_url, ("ws_1", "idle", 3, "run"))
    async with pool.connection() as connection:
        await connection.execute("SELECT 1")
        with pytest.raises(OperatorError):
            fence(database_url)
    assert epochs(database_url) == {"ws_1": 3}


def test_programs_whose_url_names_them_are_found_too(database_url: str) -> None:
    add(database_url, ("ws_1", "idle", 3, "run"))
    url = make_conninfo(database_url, application_name="platform")
    with psycopg.connect(conninfo(url)), pytest.raises(OperatorError):
        fence(url)
    assert epochs(database_url) == {"ws_1": 3}


def test_the_command_says_what_it_did(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add(database_url, ("ws_1", "idle", 3, "run"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    done = CliRunner().invoke(command)
    assert (done.exit_code, done.output) == (0, "All agents are fenced. Number of workspaces: 1.\n")
    with psycopg.connect(conninfo(database_url)):
        refused = CliRunner().invoke(command)
    assert refused.exit_code == 1
    assert "Stop all workers and controllers first." in refused.output


@pytest.mark.parametrize("name", ["evershell", "platform"])
def test_the_sessions_of_commands_that_are_ending_do_not_count(
    database_url: str, name: str
) -> None:
    """They end a little later than their command."""
    url = make_conninfo(database_url, application_name=name)
    add(database_url, ("ws_1", "idle", 3, "run"))
    for _ in range(20):
        assert fence(url) == 1


def test_a_schema_of_an_earlier_version(empty_database_url: str) -> None:
    """Its agents are fenced, whether it is migrated before or after."""
    first = resources.files("evershell.store") / "migrations" / "0001_initial.sql"
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(first.read_text().encode())
    add(empty_database_url, ("ws_1", "idle", 3, "run"))
    assert fence(empty_database_url) == 1
    assert epochs(empty_database_url)["ws_1"] > 3


def refusal(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The output of the command, which has to fail."""
    monkeypatch.setenv("DATABASE_URL", url)
    done = CliRunner().invoke(command)
    assert done.exit_code == 1
    return done.output


@pytest.mark.parametrize("table", ["", "CREATE TABLE workspaces (id text)"])
def test_a_database_without_the_schema(
    table: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(table.encode())
    assert refusal(empty_database_url, monkeypatch) == (
        "Error: The database does not have the schema of this service. Check DATABASE_URL, or "
        "run `evershell migrate` first. Nothing was changed.\n"
    )


def test_a_database_that_accepts_no_writes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(database_url, ("ws_1", "idle", 3, "run"))
    url = make_conninfo(database_url, options="-c default_transaction_read_only=on")
    assert "is read-only: it is a standby, or has" in refusal(url, monkeypatch)
    assert epochs(database_url) == {"ws_1": 3}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "There is no database. Set DATABASE_URL."),
        ("postgresql://user:pass word@host", "DATABASE_URL is not a valid URL"),
        ("postgresql:///nowhere?host=/nonexistent", "The database cannot be used: connection"),
    ],
)
def test_the_command_without_a_database(
    url: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = refusal(url, monkeypatch)
    assert problem in output
    assert "pass word" not in output
