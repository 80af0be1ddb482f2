"""`evershell migrate`."""

import psycopg
import pytest
from click.testing import CliRunner

from evershell.commands.migrate import migrate


def test_it_brings_an_empty_database_to_the_schema_and_may_be_repeated(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
    for _ in range(2):
        result = CliRunner().invoke(migrate)
        assert (result.exit_code, result.output) == (0, "The schema is current.\n")
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM workspaces").fetchone() == (0,)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "There is no database"),
        ("postgresql://127.0.0.1:1/x", "Error: "),
        ("postgresql://user:pass word@host", "DATABASE_URL is not a valid URL"),
    ],
)
def test_it_says_why_it_cannot(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    result = CliRunner().invoke(migrate)
    assert result.exit_code == 1
    assert said in result.output
    assert "pass word" not in result.output
