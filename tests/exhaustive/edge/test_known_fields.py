"""Random bodies of CancelTasks: one with an unknown field is refused, every other one passes."""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import httpx
import hypothesis.strategies as st
import pytest
from evershell.workspace.v1.workspace_service_pb2 import CancelTasksRequest
from google.protobuf.json_format import Parse
from hypothesis import HealthCheck, given, settings

from tests.support.edge.stub import Stub

# In one of its spellings each: a body with both has no single meaning.
KNOWN = {"filter", "reason", "forceAfter", "dry_run"}
IN_FILTER = {"workspaceIds", "submitted_by", "createdByUserId", "metadata"}

# With quotes, backslashes, braces, commas and colons more often than chance would have it.
TEXTS = st.text(
    st.one_of(
        st.sampled_from("\"'\\{}[],:/ fliter"), st.characters(exclude_categories=["Cs", "Cc"])
    ),
    max_size=12,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "reason": TEXTS,
    "forceAfter": st.just("0s"),
    "dry_run": st.booleans(),
    "workspaceIds": st.lists(TEXTS, max_size=3),
    "submitted_by": TEXTS,
    "createdByUserId": TEXTS,
    "metadata": st.dictionaries(TEXTS, TEXTS, max_size=3),
}
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def entries(names: set[str]) -> st.SearchStrategy[tuple[str, Any]]:
    """A field that is known, mostly, with a valid value."""
    known = st.sampled_from(sorted(names)).flatmap(
        lambda name: st.tuples(st.just(name), VALUES[name])
    )
    unknown = st.tuples(st.one_of(st.sampled_from(["fliter", "Filter", "team"]), TEXTS), ANYTHING)
    return st.one_of(known, known, known, known, unknown)


def objects(names: set[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(entries(names), max_size=4).map(dict)


VALUES["filter"] = st.one_of(st.none(), objects(IN_FILTER))


def has_unknown(body: Mapping[str, Any]) -> bool:
    inner = body.get("filter")
    return bool(set(body) - KNOWN) or (isinstance(inner, dict) and bool(set(inner) - IN_FILTER))


def in_parts(whole: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    return (whole[start:end] for start, end in pairwise(places))


@pytest.mark.parametrize("rest", ["HTTP/1.1"], indirect=True)
@settings(
    max_examples=400,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    body=objects(KNOWN),
    cuts=st.lists(st.integers(1, 80), max_size=4),
    indent=st.sampled_from([None, 0, 3]),
    is_ascii=st.booleans(),
)
def test_only_unknown_fields_are_refused(
    rest: httpx.Client,
    stub: Stub,
    body: dict[str, Any],
    cuts: list[int],
    indent: int | None,
    is_ascii: bool,
) -> None:
    stub.seen.clear()
    text = json.dumps(body, indent=indent, ensure_ascii=is_ascii)
    answer = rest.post("/v1/tasks/cancel", content=in_parts(text.encode(), cuts))
    if has_unknown(body):
        assert (answer.status_code, stub.seen) == (400, []), text
        error = answer.json()["error"]
        assert error["code"] == "validation_error"
        assert error["message"].startswith("There is no field of the name "), (text, error)
        assert list(error["details"]["fields"].values()) == ["is no field of this request"]
    else:
        assert answer.status_code == 202, (text, answer.text)
        assert stub.seen[-1][0] == Parse(text, CancelTasksRequest())
