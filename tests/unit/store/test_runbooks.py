"""The queries on the pages for operators run on the current schema."""

import re

import psycopg
import pytest

from tests.support.stack import ROOT

PAGE = "".join(
    (ROOT / "docs" / name).read_text() for name in ("runbooks.md", "operating.md", "slo.md")
)
QUERIES = re.findall(r'psql "\$DATABASE_URL" -c "([^"]+)"', PAGE)


def test_the_queries_are_found() -> None:
    assert len(QUERIES) == PAGE.count("psql ") > 0


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: " ".join(query.split())[:40])
def test_a_query_runs(query: str, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(query.encode()).fetchall()
