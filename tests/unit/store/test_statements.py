"""Each statement in the .sql files is valid and is used, and each statement in use exists."""

import re
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest

from evershell import features, store
from evershell.core.task_filter import TaskFilter
from evershell.store import cancel_tasks
from evershell.store.statements import statements

STORE = Path(store.__path__[0])
ROOMS = Path(features.__path__[0])
FILES = sorted([*STORE.glob("*.sql"), *ROOMS.glob("*/*.sql")])
HEADER = re.compile(r"^-- (name|part): (\w+)$", re.MULTILINE)
PARAMETER = re.compile(r"%\((\w+)\)s")


def name_of(path: Path) -> str:
    return str(path.relative_to(STORE.parent).with_suffix(""))


def module(path: Path) -> Any:
    return import_module(f"evershell.{name_of(path).replace('/', '.')}")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_statement_is_used_and_each_that_is_used_exists(path: Path) -> None:
    headers = HEADER.findall(path.read_text())
    source = "".join(each.read_text() for each in path.parent.glob("*.py"))
    own = path.with_suffix(".py").read_text()
    named = {each for kind, each in headers if kind == "name"}
    foreign = set(re.findall(rf"\b{path.stem}\.SQL\.(\w+)", source))
    assert set(re.findall(r"(?<!\.)\bSQL\.(\w+)", own)) | foreign == named
    assert len(headers) == len(vars(module(path).SQL)), "no name stands twice"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_statement_is_valid(path: Path, database_url: str) -> None:
    headers = HEADER.findall(path.read_text())
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in (each for kind, each in headers if kind == "name"):
            query = getattr(module(path).SQL, statement)
            # PostgreSQL finds no operator for two values without a type, so `now` has a type.
            values = dict.fromkeys(PARAMETER.findall(query)) | {"now": datetime.now(UTC)}
            connection.execute(f"EXPLAIN {query}".encode(), values)


def test_only_the_store_and_rooms_have_sql() -> None:
    files = {path.relative_to(STORE.parent) for path in STORE.parent.rglob("*.sql")}
    assert {path.parts[0] for path in files} == {"store", "features"}


def test_a_place_that_stands_for_nothing_is_an_error() -> None:
    with pytest.raises(KeyError, match="lock_class"):
        statements("holds")


def test_no_field_of_a_filter_is_left_out() -> None:
    """If the statement ignored a field of the filter, it would match tasks with any value of it."""
    assert set(TaskFilter.__slots__) <= set(PARAMETER.findall(cancel_tasks.SQL.match_tasks))
