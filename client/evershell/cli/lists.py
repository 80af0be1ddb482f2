"""The options `--limit` and `--status` of commands that print lists, and the count of rows."""

from collections.abc import Callable, Collection, Iterable
from enum import StrEnum
from itertools import islice
from typing import Any, Protocol, TypeVar

import click

from evershell.cli.terminal import say_lines

_UNSPECIFIED = "unspecified"
_MOST = 1_000_000


class _HasStatus(Protocol):
    @property
    def status(self) -> StrEnum: ...


Item = TypeVar("Item")
ItemWithStatus = TypeVar("ItemWithStatus", bound=_HasStatus)


def whole_number(least: int, most: int | None = None) -> click.IntRange:
    """The type of an option whose value is a whole number in a range."""
    kind = click.IntRange(least, most)
    # Error messages show this name.
    kind.name = "whole number"
    return kind


def limit_option(default: int | None = None) -> Callable[..., Any]:
    """The option `--limit`. Without a default, a command lists everything."""
    return click.option(
        "--limit",
        type=whole_number(1, _MOST),
        default=default,
        metavar="N",
        help=f"The number of entries. Default: {default or 'all'}.",
    )


def status_option(kind: type[StrEnum]) -> Callable[..., Any]:
    """The option `--status`, with the members of an enum."""
    statuses = [each.value for each in kind if each.value != _UNSPECIFIED]
    return click.option(
        "--status",
        "statuses",
        type=click.Choice(statuses),
        multiple=True,
        metavar="STATUS",
        help=f"Only with this status; can be given several times: {', '.join(statuses)}.",
    )


def page_size(limit: int | None, statuses: Collection[str] = ()) -> int:
    """The page size to ask for: the maximum of the service, or less if fewer items are needed."""
    return 200 if limit is None or statuses else min(limit + 1, 200)


def having(items: Iterable[ItemWithStatus], statuses: Collection[str]) -> Iterable[ItemWithStatus]:
    """The items with one of the statuses; all items if there are no statuses."""
    return (each for each in items if not statuses or each.status in statuses)


def first(items: Iterable[Item], limit: int | None) -> tuple[list[Item], bool]:
    """The first items, and whether there are more."""
    found = list(islice(items, None if limit is None else limit + 1))
    return found[:limit], limit is not None and len(found) > limit


def print_count(count: int, noun: str, *, has_more: bool) -> None:
    """Prints to standard error how many rows a table has. Prints nothing if it has none."""
    if count:
        text = f"{count} {noun if count == 1 else _plural(noun)}"
        more = "; there are more, which --limit leaves out" if has_more else ""
        say_lines(f"{text}{more}.", error=True)


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
