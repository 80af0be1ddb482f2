"""The items of a page, encoded in parts."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")
_Message = TypeVar("_Message")
# 50 large tasks take about 2 ms to encode.
_ITEMS_AT_ONCE = 50


async def encode_page(
    items: Sequence[_Item], encode: Callable[[_Item], _Message]
) -> Sequence[_Message]:
    """Encodes the items of a list. Lets other calls run between its parts."""
    messages = []
    for index, item in enumerate(items, start=1):
        messages.append(encode(item))
        if index % _ITEMS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return messages
