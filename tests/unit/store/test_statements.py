"""The statements in the .sql files of the store are valid, and are those that its modules use."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from evershell import store
from evershell.core.task_filter import TaskFilter
from evershell.store import cancel_tasks
from evershell.store.statements import statements

STORE = Path(store.__path__[0])
FILES = sorted(path.stem for path in STORE.glob("*.sql"))
HEADER = re.compile(r"^-- (name|part): (\w+)$", re.MULTILINE)
PARAMETER = re.compile(r"%\((\w+)\)s")


def module(name: str) -> Any:
    return __import__(f"evershell.store.{name}", fromlist=["SQL"])


@pytest.mark.parametrize("name", FILES)
def test_each_statement_is_used_and_each_that_is_used_exists(name: str) -> None:
    headers = HEADER.findall((STORE / f"{name}.sql").read_text())
    source = "".join(path.read_text() for path in STORE.glob("*.py"))
    own = (STORE / f"{name}.py").read_text()
    named = {each for kind, each in headers if kind == "name"}
    foreign = set(re.findall(rf"\b{name}\.SQL\.(\w+)", source))
    assert set(re.findall(r"(?<!\.)\bSQL\.(\w+)", own)) | foreign == named
    assert len(headers) == len(vars(module(name).SQL)), "no name stands twice"


@pytest.mark.parametrize("name", FILES)
def test_each_statement_is_valid(name: str, database_url: str) -> None:
    headers = HEADER.findall((STORE / f"{name}.sql").read_text())
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in (each for kind, each in headers if kind == "name"):
            query = getattr(module(name).SQL, statement)
            # PostgreSQL knows no operator for two values without a type.
            values = dict.fromkeys(PARAMETER.findall(query)) | {"now": datetime.now(UTC)}
            connection.execute(f"EXPLAIN {query}".encode(), values)


def test_only_the_store_has_sql() -> None:
    files = {path.relative_to(STORE.parent) for path in STORE.parent.rglob("*.sql")}
    assert {path.parts[0] for path in files} == {"store"}


def test_a_place_that_stands_for_nothing_is_an_error() -> None:
    with pytest.raises(KeyError, match="lock_class"):
        statements("holds")


def test_no_field_of_a_filter_is_left_out() -> None:
    """A field that the statement does not read would match every task."""
    assert set(TaskFilter.__slots__) <= set(PARAMETER.findall(cancel_tasks.SQL.match_tasks))
