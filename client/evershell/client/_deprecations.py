"""Warns programs that use a deprecated part of the API."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

_PACKAGE = "evershell.client"


def warn_of_rpc(rpc: str, metadata: Mapping[str, Any]) -> None:
    """Warns if the answer says that its RPC is deprecated."""
    if "deprecation" in metadata:
        _warn(rpc, f" It works until {metadata['sunset']}." if "sunset" in metadata else "")


def warn_of_fields(request: Message) -> None:
    """Warns about each deprecated field that the request sets."""
    for name in _deprecated_fields(request):
        _warn(name)


def _deprecated_fields(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.GetOptions().deprecated:
            yield f"{message.DESCRIPTOR.name}.{field.name}"
        elif isinstance(value, Message):
            yield from _deprecated_fields(value)


def _warn(name: str, sunset: str = "") -> None:
    """Issues a DeprecationWarning for the line that called the client.

    By default, Python shows such warnings only for code in `__main__`.
    """
    text = f"{name} is deprecated in the API of evershell.{sunset}"
    warnings.warn(text, DeprecationWarning, stacklevel=_depth_of_caller())


def _depth_of_caller() -> int:
    """The `stacklevel` with which `_warn` names the line that called the client."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].startswith(_PACKAGE):
        depth, frame = depth + 1, frame.f_back
    return depth
