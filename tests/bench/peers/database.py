"""The databases of the peers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo


class PeerDatabase:
    """A database of one peer, on a server that others use too."""

    def __init__(self, server_url: str, name: str) -> None:
        self._server_url = server_url
        self._name = sql.Identifier(name)
        self._conninfo = make_conninfo(server_url, dbname=name)
        self.settings = {
            f"DATABASE_{field}": str(value)
            for field, value in conninfo_to_dict(self._conninfo).items()
            if field in ("host", "port", "user", "password", "dbname")
        }

    def create(self) -> None:
        """Creates the database, empty. One that is left over is dropped first."""
        self.drop()
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(self._name))

    def drop(self) -> None:
        """Drops the database, if it exists, and ends its sessions."""
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(self._name)
            )

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A connection in a transaction, which is committed at the end."""
        with psycopg.connect(self._conninfo) as connection:
            yield connection
