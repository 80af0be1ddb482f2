"""The rules for the fields of a request."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.tasks import SubmitTask
from evershell.core.validation import MAX_PAGE_CHARACTERS, Listed, Page
from evershell.core.workspace import Workspace
from tests.support.world import workspace


def problems(**changes: object) -> dict[str, str]:
    """Returns the invalid fields of a submission with these changes, each with what is wrong."""
    request = {"workspace_id": "ws_1", "description": "ls", "origin": Origin("req"), **changes}
    try:
        SubmitTask(**request)  # type: ignore[arg-type]
    except Failure as failure:
        assert failure.slug == "validation_error"
        found: dict[str, str] = failure.details["fields"]
        assert all(field in failure.message for field in found)
        return found
    return {}


def test_one_failure_names_every_invalid_field() -> None:
    assert set(problems(workspace_id="?", description=" ", max_iterations=-1)) == {
        "workspace_id",
        "description",
        "max_iterations",
    }


@pytest.mark.parametrize("good", ["a", "Z9_-", "x" * 128, "ws_01ARZ3NDEKTSV4RRFFQ69G5FAV"])
def test_an_id_may_be_any_word(good: str) -> None:
    assert problems(workspace_id=good) == {}


@pytest.mark.parametrize("bad", ["", " ", "a b", "x" * 129, "ws_1\n", "\0", "é", "a.b", "a/b", "١"])
def test_a_malformed_id_is_refused(bad: str) -> None:
    assert set(problems(workspace_id=bad)) == {"workspace_id"}


@pytest.mark.parametrize("bad", ["", "  \n", "x" * 100_001, "a\0b"])
def test_a_blank_or_too_long_description_is_refused(bad: str) -> None:
    assert set(problems(description=bad)) == {"description"}


def test_a_description_may_have_100000_characters() -> None:
    assert problems(description="🐚" * 100_000) == {}


@pytest.mark.parametrize(
    "bad",
    [
        {str(number): "" for number in range(33)},
        {"k" * 65: ""},
        {"": "v"},
        {"k": "v" * 513},
        {"k": "\0"},
        {"\0": "v"},
    ],
)
def test_metadata_has_bounds(bad: dict[str, str]) -> None:
    assert set(problems(metadata=bad)) == {"metadata"}


def test_metadata_within_its_bounds_is_valid() -> None:
    assert problems(metadata={f"{number:064}": "v" * 512 for number in range(32)}) == {}


@pytest.mark.parametrize(
    ("count", "good"), [(0, True), (1, True), (1000, True), (1001, False), (-1, False)]
)
def test_max_iterations_has_bounds(count: int, good: bool) -> None:
    assert (problems(max_iterations=count) == {}) is good


@pytest.mark.parametrize("size", [-1, 201])
def test_a_page_has_bounds(size: int) -> None:
    with pytest.raises(Failure) as raised:
        Page.of(size, "")
    assert raised.value.slug == "validation_error"


def token_of(id_: str, listed: bytes) -> str:
    """Returns the token of the page that begins after this item."""
    found = Listed([replace(workspace(), id=id_), workspace()])
    return Page(1, None, listed).cut(found)[1]


def test_a_page_goes_on_after_the_item_of_its_token() -> None:
    for id_ in ("ws_01ARZ3NDEKTSV4RRFFQ69G5FAV", "a", "x" * 128):
        token = token_of(id_, b"list")
        assert Page.of(200, token, b"list") == Page(200, id_, b"list")
        # A token needs no escaping in a URL.
        assert re.fullmatch(r"[A-Za-z0-9_-]+", token)


@pytest.mark.parametrize(
    "token",
    [
        "?",
        "no token",
        "ws_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "é",
        "\0",
        "a",
        "A" * 8,
        "A" * 12,
        "x" * 9999,
    ],
)
def test_a_malformed_page_token_is_refused(token: str) -> None:
    with pytest.raises(Failure) as raised:
        Page.of(1, token, b"list")
    assert set(raised.value.details["fields"]) == {"page_token"}


def test_a_changed_page_token_and_that_of_another_list_are_refused() -> None:
    token = token_of("ws_1", b"list")
    changed = [token[:at] + ("B" if token[at] == "A" else "A") + token[at + 1 :] for at in range(9)]
    for bad in (*changed, token + "=", token + "A", token[:-1], token_of("ws_1", b"another")):
        with pytest.raises(Failure):
            Page.of(1, bad, b"list")


def test_every_page_but_the_last_has_a_token() -> None:
    found = Listed([workspace() for _ in range(3)])

    def cut(size: int, weight: int = 0) -> tuple[Sequence[Workspace], str | None]:
        page, token = Page(size, None).cut(found, lambda _: weight)
        return page, Page.of(size, token).before_id

    assert cut(2) == (found[:2], found[1].id)
    # If a page would be too large for a message, it has fewer items, but at least one.
    assert cut(3, MAX_PAGE_CHARACTERS // 2) == (found[:2], found[1].id)
    assert cut(3, MAX_PAGE_CHARACTERS * 2) == (found[:1], found[0].id)
    assert cut(3) == (found, None)
    assert Page(3, None).cut(Listed([])) == ([], "")


@pytest.mark.parametrize("found", [0, 2])
def test_a_page_of_which_not_all_was_read_goes_on_after_the_last_item_read(found: int) -> None:
    read = Listed([workspace() for _ in range(found)], "ws_last")
    page, token = Page(3, None).cut(read)
    assert (page, Page.of(3, token).before_id) == (read, "ws_last")
    # Items that were read but do not fit come with the next page.
    read = Listed([workspace() for _ in range(3)], "ws_last")
    page, token = Page(2, None).cut(read)
    assert (page, Page.of(2, token).before_id) == (read[:2], read[1].id)
