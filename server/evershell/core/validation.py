"""The rules for the fields of requests. A request object checks them when it is constructed."""

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from evershell.workspace.v1 import field_limits

from evershell.core import errors

_ID = re.compile(field_limits.ID)

MAX_REASON_CHARACTERS = field_limits.CANCEL_TASK_REASON_MAX
# The page sizes of all lists.
MAX_PAGE_SIZE = field_limits.LIST_TASKS_PAGE_SIZE_MAX
DEFAULT_PAGE_SIZE = field_limits.LIST_TASKS_PAGE_SIZE_DEFAULT_VALUE
# Keeps a page below 4 MiB, the largest message that gRPC clients accept by default. A character may
# take four bytes.
MAX_PAGE_CHARACTERS = 900_000
_CHECKSUM_BYTES = 6


def is_identifier(value: str) -> bool:
    """Whether the value has the syntax of an id."""
    return _ID.fullmatch(value) is not None


class Fields:
    """Collects the problems of a request, so that one error reports all of them."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}

    def reject(self, field: str, problem: str) -> None:
        """Adds a problem. A field keeps its first problem."""
        self._problems.setdefault(field, problem)

    def identifier(self, field: str, value: str) -> None:
        if not is_identifier(value):
            self.reject(field, "must be 1 to 128 characters of A-Z a-z 0-9 _ -")

    def identifiers(self, field: str, values: Sequence[str], most: int) -> None:
        if len(values) > most:
            self.reject(field, f"has {len(values):,} entries; at most {most:,} are allowed")
        for each in values:
            self.identifier(field, each)

    def text(self, field: str, value: str, *, max_characters: int, required: bool = False) -> None:
        """Checks a human-readable text. NUL is refused, because PostgreSQL cannot store it."""
        if required and not value.strip():
            self.reject(field, "must not be empty")
        elif len(value) > max_characters:
            self.reject(
                field, f"has {len(value):,} characters; at most {max_characters:,} are allowed"
            )
        elif "\0" in value:
            self.reject(field, "must not contain the character NUL")

    def between(self, field: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            self.reject(field, f"must be {low:,} to {high:,}")

    def check(self) -> None:
        """Raises Failure validation_error if a problem was added."""
        if self._problems:
            raise errors.invalid(self._problems)


def check_identifiers(**values: str) -> None:
    """Checks fields whose only rule is the syntax of ids. Raises Failure validation_error."""
    fields = Fields()
    for field, value in values.items():
        fields.identifier(field, value)
    fields.check()


class HasId(Protocol):
    """An item of a list that is paged by id."""

    @property
    def id(self) -> str:
        """The id. Ids sort by time of creation."""


Item = TypeVar("Item", bound=HasId)


class Listed(list[Item]):
    """The items that a store has found, newest first.

    A store reads a bounded number of items. If it reached the bound, there may be more items, and
    `last_id` is the id of the last item that it read, whether this item matched or not.
    """

    def __init__(self, items: Iterable[Item] = (), last_id: str | None = None) -> None:
        super().__init__(items)
        self.last_id = last_id


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list, newest first.

    The page token has the id of the last item before the page, and a checksum of this id and the
    list, so that malformed tokens and tokens of other lists can be refused (AIP-158).
    """

    size: int
    # None for the first page.
    before_id: str | None
    # Identifies the list: its owner, and the filter of its items.
    listed: bytes = b""

    @classmethod
    def of(cls, page_size: int, page_token: str, listed: bytes = b"") -> "Page":
        """Decodes the fields of a request. Raises Failure validation_error."""
        fields = Fields()
        if page_size:
            fields.between("page_size", page_size, 1, MAX_PAGE_SIZE)
        before_id = _id_in(page_token) or None
        if page_token and (before_id is None or _page_token(before_id, listed) != page_token):
            fields.reject(
                "page_token",
                "must be the next_page_token of the same list, with the same other fields",
            )
        fields.check()
        return cls(page_size or DEFAULT_PAGE_SIZE, before_id, listed)

    def cut(
        self, listed: Listed[Item], weigh: Callable[[Item], int] = lambda _: 0
    ) -> tuple[Sequence[Item], str]:
        """The items of the page, and the token of the next page, which is empty on the last page.

        There is a next page if `listed` has more items than the page, or if the store has not read
        all items. `weigh` returns the size of an item in characters. A page ends early if it would
        exceed the size of a message.
        """
        page: list[Item] = []
        characters = 0
        for item in listed[: self.size]:
            characters += weigh(item)
            if page and characters > MAX_PAGE_CHARACTERS:
                break
            page.append(item)
        last_id = page[-1].id if len(listed) > len(page) else listed.last_id
        return page, "" if last_id is None else _page_token(last_id, self.listed)


def _page_token(before_id: str, listed: bytes) -> str:
    checksum = hashlib.sha256(listed + before_id.encode()).digest()[:_CHECKSUM_BYTES]
    return urlsafe_b64encode(checksum + before_id.encode()).decode().rstrip("=")


def _id_in(page_token: str) -> str:
    """The id that the token names; empty if the token is malformed.

    Anyone can compute the checksum, so the id is checked like any id from a caller.
    """
    try:
        padded = page_token.encode("ascii") + b"=" * (-len(page_token) % 4)
        named = urlsafe_b64decode(padded)[_CHECKSUM_BYTES:].decode("ascii")
    except ValueError:
        return ""
    return named if is_identifier(named) else ""
