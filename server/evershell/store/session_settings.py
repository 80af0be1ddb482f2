"""The settings of this service's sessions in PostgreSQL.

A client that connects to PostgreSQL itself sends them when its session begins. A pooler in
transaction mode cannot keep them for a client, because each transaction may run in another session.
For use behind a pooler, `migrate` therefore stores the settings as defaults of the role in this
database.
"""

from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from evershell.store.statements import statements

SQL = statements("session_settings")
SETTINGS = {
    # The service writes times in UTC. With this setting, it also reads them in UTC.
    "TimeZone": "UTC",
    # The locking of the store requires this isolation level.
    "default_transaction_isolation": "read committed",
    "statement_timeout": "5s",
    # A program that was frozen or cut off in a transaction may hold the lock of a workspace, so the
    # server ends its session. This is shorter than other programs wait for the lock
    # (pool.ANSWER_TIMEOUT_SECONDS).
    "idle_in_transaction_session_timeout": "2500ms",
    # If a client closes its connection (hang_up_after), the server ends the session, even while the
    # session waits for a lock.
    "client_connection_check_interval": "500ms",
}
# With these settings, the server notices within 9 s that the host of a client cannot be reached. By
# default this takes two hours, so network partitions would use up connections. `migrate` does not
# store them as defaults of the role, because a pooler has its own network settings.
_NETWORK_SETTINGS = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "5000",
}
# All these settings, in the form of the connection parameter `options`.
OPTIONS = " ".join(
    "-c {}={}".format(name, value.replace(" ", r"\ "))
    for name, value in (SETTINGS | _NETWORK_SETTINGS).items()
)
# The settings for commands such as `migrate`, which may take longer than the limits. They override
# limits that are defaults of the role. If the command is killed, the server ends the session, even
# while the session waits for a lock.
UNLIMITED = (
    "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 "
    f"-c client_connection_check_interval={SETTINGS['client_connection_check_interval']}"
)


def store_as_defaults(session_url: str) -> None:
    """Makes the settings the defaults of the URL's role in its database. Needs no privilege.

    `session_url` must lead to PostgreSQL itself. Raises psycopg.Error.
    """
    with psycopg.connect(session_url, autocommit=True) as connection:
        stored = _defaults(connection)
        for name, value in SETTINGS.items():
            if f"{name}={value}" not in stored:
                statement = sql.SQL("ALTER ROLE SESSION_USER IN DATABASE {} SET {} = {}")
                database = sql.Identifier(connection.info.dbname)
                connection.execute(statement.format(database, sql.Identifier(name), value))


def _defaults(connection: psycopg.Connection[Any]) -> list[str]:
    """The defaults of the role in this database, as name=value."""
    row = connection.execute(SQL.defaults).fetchone()
    return [] if row is None else list(row[0])


_GRANTS: tuple[LiteralString, ...] = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON orgs, api_keys, workspaces, tasks, events, "
    "idempotency_keys, org_holds, service_clock, agent_cards, webhooks, webhook_deliveries, "
    "deleted_workspaces, log_readers TO {role}",
    "GRANT USAGE, SELECT ON SEQUENCE event_positions TO {role}",
    # The service cannot change or remove entries of the audit log.
    "REVOKE ALL ON audit_entries FROM {role}",
    "GRANT SELECT, INSERT ON audit_entries TO {role}",
    # Programs read which migrations are applied, to wait until the schema is current.
    "GRANT SELECT ON _yoyo_migration TO {role}",
)


def grant(connection: psycopg.Connection[Any], service_database_url: str) -> None:
    """Grants what the service needs to the role of the URL, unless it is the current role.

    Raises psycopg.ProgrammingError if there is no such role.
    """
    role = conninfo_to_dict(service_database_url).get("user")
    current = connection.execute(SQL.current_role).fetchone()
    assert current is not None
    if role is None or role == current[0]:
        return
    names = {"role": sql.Identifier(str(role)), "schema": sql.Identifier(current[1])}
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**names))
    for statement in _GRANTS:
        connection.execute(sql.SQL(statement).format(**names))
