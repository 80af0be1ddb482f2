"""PgBouncer in transaction mode, in front of a test's PostgreSQL."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from evershell.stack import postgres
from tests.support.ports import free_ports
from tests.support.waiting import eventually

# Debian installs PgBouncer in /usr/sbin, which is not in every PATH.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")

# The programs of a stack open more connections than this, so they must share sessions.
SERVER_CONNECTIONS = 4
_SETTINGS = """\
[databases]
* = host={host} port={port} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
admin_users = {user}
pool_mode = transaction
max_prepared_statements = {prepared_statements}
default_pool_size = {server_connections}
server_login_retry = 1
ignore_startup_parameters = {ignored}
logfile = {folder}/pgbouncer.log
"""


class PgBouncer:
    """A PgBouncer that a test can stop and start again at the same address."""

    def __init__(
        self,
        database_url: str,
        folder: Path,
        *,
        prepared_statements: int = 200,
        ignored: str = "",
    ) -> None:
        """PgBouncer accepts and drops the startup parameters in `ignored`."""
        server = conninfo_to_dict(database_url)
        (self._port,) = free_ports(1, in_a_row=1)
        self._folder = folder
        self._config = folder / "pgbouncer.ini"
        self._config.write_text(
            _SETTINGS.format(
                host=server["host"],
                port=server.get("port", 5432),
                user=server["user"],
                listen_port=self._port,
                prepared_statements=prepared_statements,
                server_connections=SERVER_CONNECTIONS,
                ignored=ignored,
                folder=folder,
            )
        )
        # The URL of the PostgreSQL server itself.
        self.session_url = database_url
        self.url = make_conninfo(
            "", host="127.0.0.1", port=self._port, user=server["user"], dbname=server["dbname"]
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts PgBouncer. Returns once it accepts clients."""
        assert PROGRAM is not None
        with (self._folder / "output").open("ab") as output:
            # Like PostgreSQL, PgBouncer refuses to run as root.
            self._process = subprocess.Popen(
                [*(postgres._prefix() or ()), PROGRAM, str(self._config)],
                stdout=output,
                stderr=output,
            )
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "output").read_text()
        try:
            self.admin("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True

    def admin(self, command: str) -> list[tuple[object, ...]]:
        """Runs a command in PgBouncer's admin console. Returns the rows."""
        with psycopg.connect(self.url, dbname="pgbouncer", autocommit=True) as console:
            cursor = psycopg.ClientCursor(console)
            cursor.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def stop(self) -> None:
        """Ends PgBouncer immediately, and with it the connections of its clients."""
        if self._process is not None:
            # SIGTERM would wait until all clients have left.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(10)
            self._process = None
