"""CancelTask with FastAPI, SQLAlchemy's ORM on asyncpg, and httpx: one peer's server.

This peer keeps the promises of the service that concern a single call: the intent and its event are
committed in one transaction before the agent is signalled and before the answer; a second call
records nothing; if the agent cannot be reached, the answer is 503 and the intent stays recorded.

The peer is built as the documentation of these packages recommends: with a dependency that
authenticates the caller, a session for each request, and a unit of work that is flushed at its
commit.
"""

import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from cachetools import TTLCache
from fastapi import Body, Depends, FastAPI, HTTPException, Path, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from sqlalchemy import DateTime, ForeignKey, Index, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench.peers.server import (
    AgentUnreachableError,
    HttpAgentClient,
    PeerSettings,
    create_engine,
    serve,
)

_REQUIRED_SCOPE = "workspace:write"
_TERMINAL = ("completed", "failed", "cancelled", "delivery_failed")
_REFUSALS = {
    "provisioning": "workspace_provisioning",
    "stopping": "workspace_stopped",
    "stopped": "workspace_stopped",
    "failed": "workspace_failed",
}
# A revoked key stops working within this time.
_KEY_CACHE_SECONDS = 10

_bearer = HTTPBearer(auto_error=False)


class Base(DeclarativeBase):
    """The base class of all tables."""

    type_annotation_map = {  # noqa: RUF012 - the way of SQLAlchemy
        str: TEXT,
        datetime: DateTime(timezone=True),
        list[str]: ARRAY(TEXT),
        dict[str, Any]: JSONB,
    }


class ApiKey(Base):
    """A credential. Only the SHA-256 of the key is stored."""

    __tablename__ = "api_keys"

    key_hash: Mapped[bytes] = mapped_column(primary_key=True)
    id: Mapped[str]
    org_id: Mapped[str]
    scopes: Mapped[list[str]]
    revoked_at: Mapped[datetime | None]


class Workspace(Base):
    """A workspace. Its row is locked by every transaction that changes it or its tasks."""

    __tablename__ = "workspaces"

    id: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[str]
    status: Mapped[str]
    current_task_id: Mapped[str | None]
    last_seq: Mapped[int] = mapped_column(default=0)


class Task(Base):
    """A task, with the recorded intent to cancel it."""

    __tablename__ = "tasks"

    id: Mapped[str] = mapped_column(primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"), index=True)
    status: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    cancel_requested_at: Mapped[datetime | None]
    cancel_requested_by: Mapped[str | None]
    cancel_reason: Mapped[str | None]
    cancel_request_id: Mapped[str | None]


class Event(Base):
    """An entry of a workspace's log."""

    __tablename__ = "events"
    __table_args__ = (
        # A task has at most one cancellation.
        Index(
            "one_cancellation",
            "task_id",
            unique=True,
            postgresql_where=text("type = 'task_cancel_requested'"),
        ),
    )

    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    time: Mapped[datetime]
    task_id: Mapped[str]
    request_id: Mapped[str]
    payload: Mapped[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller to whom the API key belongs."""

    key_id: str
    org_id: str
    scopes: frozenset[str]


class Cancel(BaseModel):
    """The body of a request to cancel a task. A request may have no body."""

    reason: str | None = Field(None, max_length=500)


class Cancellation(BaseModel):
    """The answer to a request to cancel a task."""

    workspace_id: str
    task_id: str | None
    outcome: str
    requested_at: datetime | None
    requested_by: str | None
    reason: str | None


class Refused(HTTPException):
    """An error with a slug, in the envelope of the API."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(status, {"code": code, "message": message, "details": details})


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    settings = PeerSettings()
    engine = create_engine(settings)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    agent = HttpAgentClient(settings.agent_url)
    yield {
        "sessions": async_sessionmaker(engine, expire_on_commit=False),
        "agent": agent,
        "callers": TTLCache(maxsize=10_000, ttl=_KEY_CACHE_SECONDS),
    }
    await agent.close()
    await engine.dispose()


app = FastAPI(lifespan=_lifespan)


async def caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Authenticates the API key. Caches valid keys."""
    if credentials is None:
        raise Refused(401, "unauthenticated", "An API key is missing.")
    key_hash = hashlib.sha256(credentials.credentials.encode()).digest()
    found: Caller | None = request.state.callers.get(key_hash)
    if found is None:
        async with request.state.sessions() as session:
            key = await session.get(ApiKey, key_hash)
        if key is None or key.revoked_at is not None:
            raise Refused(401, "unauthenticated", "The API key is not valid.")
        found = Caller(key.id, key.org_id, frozenset(key.scopes))
        request.state.callers[key_hash] = found
    if _REQUIRED_SCOPE not in found.scopes:
        raise Refused(403, "permission_denied", "A scope is missing.", required=[_REQUIRED_SCOPE])
    return found


@app.exception_handler(Refused)
async def refuse(_request: Request, refused: Refused) -> JSONResponse:
    """Renders the error in the envelope of the API."""
    headers = {"WWW-Authenticate": "Bearer"} if refused.status_code == 401 else None
    return JSONResponse({"error": refused.detail}, refused.status_code, headers)


@app.post("/v1/workspaces/{workspace_id}/task/cancel", status_code=202)
async def cancel_task(
    request: Request,
    workspace_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,128}$")],
    caller: Annotated[Caller, Depends(caller)],
    cancel: Annotated[Cancel | None, Body()] = None,
) -> Cancellation:
    """Cancels the task that runs in a workspace."""
    reason = cancel.reason if cancel else None
    async with request.state.sessions.begin() as session:
        answer = await _record(session, caller, workspace_id, reason)
    if answer.task_id is not None:
        try:
            await request.state.agent.cancel(answer.task_id)
        except AgentUnreachableError as error:
            raise Refused(
                503,
                "agent_unreachable",
                "The agent could not be reached. The cancellation is recorded.",
                task_id=answer.task_id,
                intent_recorded=True,
            ) from error
    return answer


async def _record(
    session: Any, caller: Caller, workspace_id: str, reason: str | None
) -> Cancellation:
    """Records the intent and its event if a task runs whose intent is not recorded yet."""
    workspace = await session.scalar(
        select(Workspace)
        .where(Workspace.id == workspace_id, Workspace.org_id == caller.org_id)
        .with_for_update()
    )
    if workspace is None:
        raise Refused(404, "workspace_not_found", f"There is no workspace {workspace_id}.")
    if slug := _REFUSALS.get(workspace.status):
        raise Refused(409, slug, f"Workspace {workspace_id} is {workspace.status}.")
    # Reads the task in a separate statement, after the lock. So this statement sees what others
    # committed while this call waited for the lock.
    task = workspace.current_task_id and await session.get(Task, workspace.current_task_id)
    if task is None or task.status in _TERMINAL:
        outcome, task = "no_active_task", None
    elif task.cancel_requested_at is not None:
        outcome = "already_requested"
    else:
        outcome = "accepted"
        task.cancel_requested_at = datetime.now(UTC)
        task.cancel_requested_by = caller.key_id
        task.cancel_reason = reason
        task.cancel_request_id = str(uuid.uuid4())
        workspace.last_seq += 1
        session.add(
            Event(
                workspace_id=workspace.id,
                seq=workspace.last_seq,
                type="task_cancel_requested",
                time=task.cancel_requested_at,
                task_id=task.id,
                request_id=task.cancel_request_id,
                payload={"requested_by": caller.key_id, "reason": reason},
            )
        )
    return Cancellation(
        workspace_id=workspace.id,
        task_id=task and task.id,
        outcome=outcome,
        requested_at=task and task.cancel_requested_at,
        requested_by=task and task.cancel_requested_by,
        reason=task and task.cancel_reason,
    )


if __name__ == "__main__":
    serve(app)
