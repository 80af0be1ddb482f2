"""A PostgreSQL whose service role needs a password, which is in a file."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from evershell.stack import postgres
from evershell.stack.ready import write_private

_ROLE = "service"
_ACCESS = f"local all {postgres.USER} trust\nlocal all all scram-sha-256\n"


class PasswordServer:
    def __init__(self, socket_dir: Path, folder: Path) -> None:
        self._owner_url = postgres.database_url(socket_dir)
        self._socket_dir = socket_dir
        self._passfile = folder / "passwords"
        with psycopg.connect(self._owner_url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {_ROLE} LOGIN")
            connection.execute(f"CREATE DATABASE {_ROLE} OWNER {_ROLE}")
        self.set_password("first")

    @property
    def url(self) -> str:
        """The URL of the database, which names the file with the password."""
        return f"{self._url}&passfile={self._passfile}"

    @property
    def _url(self) -> str:
        return f"postgresql:///{_ROLE}?host={self._socket_dir}&user={_ROLE}"

    def set_password(self, password: str) -> None:
        """Changes the password of the role, and then writes the new password to the file."""
        change = sql.SQL("ALTER ROLE service PASSWORD {}").format(sql.Literal(password))
        with psycopg.connect(self._owner_url) as connection:
            connection.execute(change)
        write_private(self._passfile, f"*:*:*:{_ROLE}:{password}\n")

    def accepts(self, password: str) -> bool:
        try:
            psycopg.connect(self._url, password=password).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def password_server(folder: Path) -> Iterator[PasswordServer]:
    places = postgres.places(folder)
    postgres.initialise(places.data_dir)
    (places.data_dir / "pg_hba.conf").write_text(_ACCESS)
    with (folder / "postgres.log").open("wb") as log:
        command = [*postgres.command(places.data_dir, places.socket_dir), "-c", "fsync=off"]
        process = subprocess.Popen(command, stderr=log)
    try:
        asyncio.run(postgres.wait_ready(postgres.database_url(places.socket_dir), 20))
        yield PasswordServer(places.socket_dir, folder)
    finally:
        process.send_signal(postgres.STOP_SIGNAL)
        process.wait(20)
