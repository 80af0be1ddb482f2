"""How the last events of a workspace are listed."""

from typing import Any

import pytest

from evershell.core.caller import Caller
from evershell.core.errors import Failure
from evershell.core.event import Event
from evershell.core.list_events import list_events
from evershell.core.task import IterationCompleted
from evershell.core.validation import MAX_PAGE_CHARACTERS
from tests.support.world import World, caller, iteration


async def listed(
    world: World, workspace_id: str, before: int = 0, page_size: int = 0, **options: Any
) -> tuple[list[int], int]:
    """The `seq` of each event of a page, and where the next page begins."""
    page, next_before = await list_events(
        caller(), workspace_id, before, page_size, world.store, **options
    )
    return [event.seq for event in page], next_before


async def test_pages_lead_to_the_first_event(world: World) -> None:
    busy, running = await world.add_busy()
    await world.commit(busy.id, running.id, *(iteration(number) for number in range(1, 4)))
    assert await listed(world, busy.id) == ([5, 4, 3, 2, 1], 0)
    assert await listed(world, busy.id, page_size=2) == ([5, 4], 4)
    assert await listed(world, busy.id, before=4, page_size=2) == ([3, 2], 2)
    assert await listed(world, busy.id, before=2, page_size=2) == ([1], 0)
    assert await listed(world, busy.id, before=1) == ([], 0)
    idle = await world.add()
    assert await listed(world, idle.id) == ([], 0)


async def test_a_page_ends_before_it_is_too_large(world: World) -> None:
    busy, running = await world.add_busy()
    output = "x" * (MAX_PAGE_CHARACTERS // 2)
    await world.commit(busy.id, running.id, *(iteration(number, output) for number in (1, 2)))
    await world.commit(busy.id, running.id, iteration(3, output * 3))
    assert await listed(world, busy.id) == ([5], 5)
    assert await listed(world, busy.id, before=5) == ([4], 4)
    assert await listed(world, busy.id, before=4) == ([3, 2, 1], 0)
    assert await listed(world, busy.id, omit_outputs=True) == ([5, 4, 3, 2, 1], 0)


async def test_only_outputs_are_omitted(world: World) -> None:
    busy, running = await world.add_busy()
    one = iteration(1).payload
    two = {**iteration(2).payload, "tool_calls": [one["tool_call"], one["tool_call"]]}
    await world.commit(busy.id, running.id, iteration(1), IterationCompleted(2, two))

    async def last(count: int, **options: Any) -> list[Event]:
        page, _ = await list_events(caller(), busy.id, 0, count, world.store, **options)
        return list(page)

    whole, brief = await last(4), await last(4, omit_outputs=True)
    assert brief[2:] == whole[2:]
    assert whole[0].payload["tool_calls"][0]["result"]["output"] == "hello"
    for event, full in zip(brief[:2], whole[:2], strict=True):
        calls = [event.payload["tool_call"], *event.payload["tool_calls"]]
        assert {call["result"]["output"] for call in calls} == {""}
        assert event.payload["model_call"] == full.payload["model_call"]
        assert event.payload["tool_call"]["name"] == full.payload["tool_call"]["name"]


@pytest.mark.parametrize(
    ("by", "workspace_id", "before", "page_size", "slug"),
    [
        (caller(), "", 0, 0, "validation_error"),
        (caller(), "ws_1", -1, 0, "validation_error"),
        (caller(), "ws_1", 0, 201, "validation_error"),
        (caller("workspace:write"), "ws_1", 0, 0, "permission_denied"),
        (caller(), "ws_1", 0, 0, "workspace_not_found"),
    ],
)
async def test_a_list_is_refused(
    world: World, by: Caller, workspace_id: str, before: int, page_size: int, slug: str
) -> None:
    with pytest.raises(Failure) as raised:
        await list_events(by, workspace_id, before, page_size, world.store)
    assert raised.value.slug == slug
