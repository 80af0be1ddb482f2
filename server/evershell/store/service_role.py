"""What the service's role may do, if the tables belong to another role."""

from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

_GRANTS: tuple[LiteralString, ...] = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON orgs, api_keys, workspaces, tasks, events, "
    "idempotency_keys, org_holds, service_clock TO {role}",
    # Nobody changes or removes an entry of the audit log through the service.
    "REVOKE ALL ON audit_entries FROM {role}",
    "GRANT SELECT, INSERT ON audit_entries TO {role}",
    # Programs wait until the schema is current.
    "GRANT SELECT ON _yoyo_migration TO {role}",
)


def grant(connection: psycopg.Connection[Any], service_database_url: str) -> None:
    """Gives the role of the URL what the service needs. Nothing if it is the current role.

    Raises psycopg.ProgrammingError if there is no such role.
    """
    role = conninfo_to_dict(service_database_url).get("user")
    current = connection.execute("SELECT current_user, current_schema()").fetchone()
    assert current is not None
    if role is None or role == current[0]:
        return
    names = {"role": sql.Identifier(str(role)), "schema": sql.Identifier(current[1])}
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**names))
    for statement in _GRANTS:
        connection.execute(sql.SQL(statement).format(**names))
