"""Lists that are fetched page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list. `next_page_token` is None on the last one."""

    items: tuple[T, ...]
    next_page_token: str | None


class Pages(Generic[T]):
    """A list of the service. Iterate over it for all items, or over `pages()`.

    Each page is fetched when it is needed, so the iteration raises CallError.
    """

    def __init__(self, fetch: Callable[[str], Page[T]], page_token: str) -> None:
        self._fetch = fetch
        self._page_token = page_token

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page.items

    def pages(self) -> Iterator[Page[T]]:
        """Yields the pages, for example to keep `next_page_token` and to go on later."""
        token: str | None = self._page_token
        while token is not None:
            page = self._fetch(token)
            yield page
            token = page.next_page_token


class AsyncPages(Generic[T]):
    """A list of the service. Iterate over it for all items, or over `pages()`.

    Each page is fetched when it is needed, so the iteration raises CallError.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Page[T]]], page_token: str) -> None:
        self._fetch = fetch
        self._page_token = page_token

    async def __aiter__(self) -> AsyncIterator[T]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[T]]:
        """Yields the pages, for example to keep `next_page_token` and to go on later."""
        token: str | None = self._page_token
        while token is not None:
            page = await self._fetch(token)
            yield page
            token = page.next_page_token
