"""A copy of all objects of one kind. A list fills it, and then a watch keeps it up to date.

Resource versions are compared as numbers. Within a kind, they increase in every supported version
of Kubernetes, and Kubernetes 1.35 and later guarantee this.
"""

import asyncio
import random
from collections.abc import Callable, Iterable

import structlog

from evershell.fleet.kubernetes.api import Api, ApiError, GoneError, UnreachableError
from evershell.fleet.kubernetes.objects import Object

log = structlog.get_logger()

# The time limit of a list that `run` makes.
_LIST_SECONDS = 30.0
# The average pause of `run` after a failure.
_RETRY_SECONDS = 1.0


class Cache:
    """The objects of one kind, by name."""

    def __init__(
        self,
        api: Api,
        kind: str,
        *,
        changed: Callable[[Object], object],
        removed: Callable[[Object], object] = lambda last: None,
        refreshed: Callable[[], object] = lambda: None,
    ) -> None:
        """`kind` is the plural that the API uses, such as `pods`.

        `changed` is called with each new state of an object. When an object is gone, `removed` and
        then `changed` are called with its last state. `refreshed` is called after each list.
        """
        self._api = api
        self._kind = kind
        self._changed = changed
        self._removed = removed
        self._refreshed = refreshed
        self._objects: dict[str, Object] = {}
        # All changes up to this version are known, from a list or from the watch.
        self._version = 0
        # Whether a list has succeeded since the last call to `expect_changes`.
        self.is_current = False

    def get(self, name: str) -> Object | None:
        """The object; None if it is not known."""
        return self._objects.get(name)

    def values(self) -> Iterable[Object]:
        return list(self._objects.values())

    async def run(self) -> None:
        """Follows the API server until it is cancelled, even through outages."""
        while True:
            try:
                # The version 0 makes `refresh` accept any list. If the cluster was restored from a
                # backup, its versions are lower than before.
                self._version = 0
                await self.refresh(_LIST_SECONDS)
                while True:
                    await self._follow()
            except GoneError:
                log.info("watch_expired", kind=self._kind)
            except (ApiError, UnreachableError) as error:
                log.warning("watch_failed", kind=self._kind, problem=str(error))
                await asyncio.sleep(random.uniform(0, 2 * _RETRY_SECONDS))  # noqa: S311

    async def refresh(self, limit_seconds: float) -> None:
        """Lists the objects, so that everything that happened before the call is known.

        Raises ApiError, UnreachableError.
        """
        objects, version = await self._api.list(self._kind, limit_seconds)
        # A list with a lower version is outdated: the watch has already delivered later changes.
        if version >= self._version:
            self._replace({_name(each): each for each in objects}, version)
            self._version = version
        self.is_current = True
        self._refreshed()

    def expect_changes(self) -> None:
        """Notes that other programs may have made changes, which `refresh` will find."""
        self.is_current = False

    def put_own(self, new: Object) -> None:
        """Adds an object that this program has just written, before the watch delivers it."""
        # If the watch has already passed the object's version, the object may have been deleted
        # since.
        if _version(new) > self._version:
            self._put(new)

    def remove(self, last: Object) -> None:
        """Removes an object. `last` is the last state that is known."""
        known = self._objects.get(_name(last))
        if known is None or _uid(known) != _uid(last):
            return
        del self._objects[_name(last)]
        self._removed(last)
        self._changed(last)

    def _put(self, new: Object) -> None:
        # Nothing reads this field, and it takes more memory than all other fields.
        new["metadata"].pop("managedFields", None)
        known = self._objects.get(_name(new))
        if known is not None and _uid(known) == _uid(new) and _version(known) >= _version(new):
            return
        self._objects[_name(new)] = new
        self._changed(new)

    def _replace(self, listed: dict[str, Object], version: int) -> None:
        for known in self.values():
            # An object with a later version was written after the list was made.
            if _version(known) <= version and (
                _name(known) not in listed or _uid(known) != _uid(listed[_name(known)])
            ):
                self.remove(known)
        for each in listed.values():
            self._put(each)

    async def _follow(self) -> None:
        """Applies the changes of one watch."""
        async for type_, object_ in self._api.watch(self._kind, self._version):
            if type_ == "DELETED":
                self.remove(object_)
            elif type_ != "BOOKMARK":
                self._put(object_)
            self._version = max(self._version, _version(object_))


def _name(object_: Object) -> str:
    return str(object_["metadata"]["name"])


def _version(object_: Object) -> int:
    return int(object_["metadata"]["resourceVersion"])


def _uid(object_: Object) -> str:
    return str(object_["metadata"]["uid"])
