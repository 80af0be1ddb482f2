"""The tables of the FastAPI peer, as SQLAlchemy maps them."""

from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of all tables."""

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
        # A task is cancelled once.
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
