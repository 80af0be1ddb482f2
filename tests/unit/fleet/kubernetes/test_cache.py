"""The cache of the cluster's objects, with each event and each failure of a watch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from evershell.fleet.kubernetes import cache as cache_module
from evershell.fleet.kubernetes.cache import Cache
from evershell.fleet.kubernetes.objects import Object
from tests.support.waiting import eventually_async
from tests.unit.fleet.kubernetes.scripted import Script, failure, listed, pod, scripted, watched

NAME = "agent-ws-1-1"


class Followed:
    """A cache that follows a script, and what it has reported."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.removed: list[Object] = []

    @asynccontextmanager
    async def running(self, script: Script) -> AsyncIterator[Cache]:
        async with scripted(script) as server:
            cache = Cache(
                server,
                "pods",
                changed=lambda found: self.changed.append(found["metadata"]["resourceVersion"]),
                removed=self.removed.append,
            )
            following = asyncio.create_task(cache.run())
            try:
                yield cache
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Followed:
    monkeypatch.setattr(cache_module, "_RETRY_SECONDS", 0.001)
    return Followed()


async def forever(_: httpx2.Request) -> httpx2.Response:
    await asyncio.Event().wait()
    raise AssertionError


def version_of(cache: Cache) -> str:
    found = cache.get(NAME)
    return found["metadata"]["resourceVersion"] if found else ""


async def test_it_lists_once_and_then_watches(followed: Followed) -> None:
    script = Script(listed(5, pod(3)), watched(("MODIFIED", pod(7))), forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 3)
        assert version_of(cache) == "7"
    assert [call[2].get("resourceVersion") for call in script.calls] == [None, "5", "7"]


async def test_a_bookmark_moves_the_version_without_a_change(followed: Followed) -> None:
    script = Script(listed(5, pod(3)), watched(("BOOKMARK", pod(90, "bookmark"))), forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 3)
        assert version_of(cache) == "3"
        assert cache.get("bookmark") is None
    assert script.calls[2][2]["resourceVersion"] == "90"


async def test_a_version_that_is_too_old_makes_it_list_again(followed: Followed) -> None:
    other = pod(8, "agent-ws-1-2", "u2")
    script = Script(listed(5, pod(3)), failure(410), listed(9, other), forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: cache.get("agent-ws-1-2"))
        assert cache.get(NAME) is None
    assert [each["metadata"]["name"] for each in followed.removed] == [NAME]


async def test_it_survives_an_outage(followed: Followed) -> None:
    script = Script(
        listed(5, pod(3)),
        httpx2.ConnectError("refused"),
        failure(403),
        listed(6, pod(6)),
        forever,
    )
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 5)
        assert version_of(cache) == "6"
    assert followed.removed == []


async def test_a_cluster_that_was_restored_to_an_earlier_version(followed: Followed) -> None:
    script = Script(listed(500, pod(300)), failure(504, "too large"), listed(40, pod(30)), forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 4)
    assert cache.is_current
    assert script.calls[3][2]["resourceVersion"] == "40"


async def test_an_older_state_does_not_replace_a_newer_one(followed: Followed) -> None:
    script = Script(listed(5, pod(5)), watched(("MODIFIED", pod(4))), forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 3)
        assert version_of(cache) == "5"


async def test_a_deletion_of_an_earlier_object_of_the_same_name_is_ignored(
    followed: Followed,
) -> None:
    script = Script(listed(9, pod(9, uid="u2")), watched(("DELETED", pod(10, uid="u1"))), forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 3)
        assert cache.get(NAME) is not None


async def test_an_own_object_that_is_gone_again_does_not_come_back(followed: Followed) -> None:
    """The watch reports the end of the object before the call that creates it is answered."""
    gone = watched(("ADDED", pod(6)), ("DELETED", pod(8)))
    script = Script(listed(5), gone, forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 3)
        cache.put_own(pod(6))
        assert cache.get(NAME) is None


async def test_an_own_object_that_is_newer_than_a_list_stays(followed: Followed) -> None:
    script = Script(listed(5), forever)
    async with followed.running(script) as cache:
        await eventually_async(lambda: len(script.calls) == 2)
        cache.put_own(pod(7))
        script._answers = [listed(6)]
        await cache.refresh(1)
        assert cache.get(NAME) is not None
        assert followed.removed == []
