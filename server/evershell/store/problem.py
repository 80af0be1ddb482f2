"""What people read about a failure of the database."""

import psycopg


def problem_of(error: psycopg.Error) -> str:
    """The text of the error. That of an invalid URL would contain its password."""
    if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
        return "DATABASE_URL is not a valid URL of PostgreSQL"
    return str(error).strip()
