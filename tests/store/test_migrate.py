from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from server.core.errors import UnavailableError
from server.store import migrate as migration
from server.store.migrate import migrate

MIGRATIONS = sorted(path.stem for path in (Path(migration.__file__).parent / "migrations").glob("*.sql"))


def applied(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT migration_id FROM _yoyo_migration ORDER BY 1")]


def test_twice_is_once(empty_database_url: str) -> None:
    migrate(empty_database_url)
    first = applied(empty_database_url)
    migrate(empty_database_url)
    assert applied(empty_database_url) == first == MIGRATIONS


def test_several_at_once(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrate, [empty_database_url] * 4))
    assert applied(empty_database_url) == MIGRATIONS


def test_the_lock_of_a_killed_migration_is_no_obstacle(empty_database_url: str) -> None:
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, pid) VALUES (1, 1)")
    migrate(empty_database_url)


def test_every_spelling_of_a_url(empty_database_url: str) -> None:
    given = {key: str(value) for key, value in conninfo_to_dict(empty_database_url).items()}
    login = f"{given['user']}:pass%2Fword%20@" if "user" in given else ""
    migrate(f"postgresql://{login}{given['host'].replace('/', '%2F')}/{given['dbname']}")
    assert applied(empty_database_url) == MIGRATIONS


def test_no_server_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        migrate("postgresql:///nowhere?host=/nonexistent")
