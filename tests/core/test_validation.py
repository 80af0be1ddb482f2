"""The rules for the fields of a request."""

import pytest

from evershell.server.core.errors import Failure
from evershell.server.core.event import Origin
from evershell.server.core.tasks import SubmitTask
from evershell.server.core.validation import MAX_PAGE_CHARACTERS, Fields, Page
from tests.support.world import workspace


def problems(**changes: object) -> dict[str, str]:
    """The invalid fields of a submission with these changes, each with its problem."""
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


def test_the_first_problem_of_a_field_stays() -> None:
    fields = Fields()
    fields.reject("a", "first")
    fields.reject("a", "second")
    with pytest.raises(Failure) as raised:
        fields.check()
    assert raised.value.details["fields"] == {"a": "first"}


@pytest.mark.parametrize(("size", "token"), [(-1, ""), (201, ""), (1, "no token")])
def test_a_page_has_bounds(size: int, token: str) -> None:
    with pytest.raises(Failure) as raised:
        Page.of(size, token)
    assert raised.value.slug == "validation_error"


def test_a_page_has_50_entries_by_default() -> None:
    assert Page.of(0, "") == Page(50, None)
    assert Page.of(200, "ws_1") == Page(200, "ws_1")


def test_every_page_but_the_last_has_a_token() -> None:
    found = [workspace() for _ in range(3)]
    assert Page(2, None).cut(found) == (found[:2], found[1].id)
    # A page that would be too large for a message ends early, but has one item at least.
    assert Page(3, None).cut(found, lambda _: MAX_PAGE_CHARACTERS // 2) == (found[:2], found[1].id)
    assert Page(3, None).cut(found, lambda _: MAX_PAGE_CHARACTERS * 2) == (found[:1], found[0].id)
    assert Page(3, None).cut(found) == (found, "")
    assert Page(3, None).cut([]) == ([], "")
