"""The rules for the fields of a request. A request object that exists has passed them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from server.core import errors

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

MAX_REASON_CHARACTERS = 500
MAX_PAGE_SIZE = 200
DEFAULT_PAGE_SIZE = 50
# gRPC clients take messages of 4 MiB unless told otherwise, and a character may take four bytes.
MAX_PAGE_CHARACTERS = 900_000


class Fields:
    """Collects what is wrong with a request, so that a caller learns all of it at once."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}

    def reject(self, field: str, problem: str) -> None:
        """Notes a problem; the first one of a field stays."""
        self._problems.setdefault(field, problem)

    def identifier(self, field: str, value: str) -> None:
        """An id: what does not exist is found out later, what cannot exist is refused here."""
        if not _ID.fullmatch(value):
            self.reject(field, "must be 1 to 128 characters of A-Z a-z 0-9 _ -")

    def text(self, field: str, value: str, *, max_characters: int, required: bool = False) -> None:
        """Text for people. PostgreSQL cannot hold NUL, and no text needs it."""
        if required and not value.strip():
            self.reject(field, "must not be empty")
        elif len(value) > max_characters:
            self.reject(field, f"has {len(value):,} characters; at most {max_characters:,} are allowed")
        elif "\0" in value:
            self.reject(field, "must not hold the character NUL")

    def between(self, field: str, value: int, low: int, high: int) -> None:
        """A whole number within bounds, both included."""
        if not low <= value <= high:
            self.reject(field, f"must be {low:,} to {high:,}")

    def check(self) -> None:
        """Raises Failure validation_error when anything was rejected."""
        if self._problems:
            raise errors.invalid(self._problems)


class HasId(Protocol):
    """Anything that lists page by id."""

    @property
    def id(self) -> str:
        """Sorts by time of creation."""


Listed = TypeVar("Listed", bound=HasId)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list, newest first. The token is the id of the last one seen; `size` 0: the default."""

    size: int
    before_id: str | None

    @classmethod
    def of(cls, page_size: int, page_token: str) -> "Page":
        """From the fields of a request. Raises Failure validation_error."""
        fields = Fields()
        if page_size:
            fields.between("page_size", page_size, 1, MAX_PAGE_SIZE)
        if page_token:
            fields.identifier("page_token", page_token)
        fields.check()
        return cls(page_size or DEFAULT_PAGE_SIZE, page_token or None)

    def cut(self, found: Sequence[Listed], weigh: Callable[[Listed], int] = lambda _: 0) -> tuple[Sequence[Listed], str]:
        """The page and the token of the next one, from a list that was asked for one more than the page holds.

        `weigh` tells what an item is worth in characters; a page that would get too heavy for one message ends early.
        """
        page: list[Listed] = []
        characters = 0
        for item in found[: self.size]:
            characters += weigh(item)
            if page and characters > MAX_PAGE_CHARACTERS:
                break
            page.append(item)
        return page, page[-1].id if len(found) > len(page) else ""
