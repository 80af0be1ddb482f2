"""The rooms of this service (features/__init__.py), and what each program reads from them.

To remove a room, remove its folder and its line in ROOMS. Calls of its methods are then answered
with UNIMPLEMENTED, or over REST with 404 `not_found`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

    from evershell.features.parts import (
        LeaderParts,
        Payload,
        ProgramParts,
        Run,
        WorkerParts,
        WorkerRoom,
    )

# A room comes after the rooms whose parts it uses.
ROOMS = (
    "webhooks",
    "a2a",
)


def in_worker() -> "Sequence[Callable[[WorkerParts], WorkerRoom]]":
    """The functions that make a room's parts of a worker: `in_worker` in each `worker.py`."""
    return [module.in_worker for module in _modules("worker")]


def in_delivery() -> "Sequence[Callable[[ProgramParts], Run]]":
    """What a worker's delivery process (`deliver`) runs: `in_delivery` in each `program.py`."""
    return [module.in_delivery for module in _modules("program")]


def in_leader() -> "Sequence[Callable[[LeaderParts], Run]]":
    """The functions that measure while a controller leads: `in_leader` in a room's `metrics.py`."""
    return [module.in_leader for module in _modules("metrics")]


def settings() -> "Sequence[type[BaseSettings]]":
    """The settings that rooms add to the server's settings: `RoomSettings` in `settings.py`."""
    return [module.RoomSettings for module in _modules("settings")]


def payloads() -> "Mapping[str, Payload]":
    """Maps each form of bodies (Webhook.payload_form) to the function that makes such bodies."""
    return {module.FORM: module.payload for module in _modules("payload")}


def in_edge() -> Mapping[str, Callable[[dict[str, Any], Callable[[str], Path]], dict[str, Any]]]:
    """Maps the names of routes to the functions that add filters: `with_filters` in `edge.py`.

    A named route that is not in the result belongs to a removed room. The edge omits it.
    """
    return {module.NAME: module.with_filters for module in _modules("edge")}


def _modules(name: str) -> Iterator[Any]:
    """The modules with this name. A room need not have one."""
    for room in ROOMS:
        path = f"{__package__}.{room}.{name}"
        if find_spec(path) is not None:
            yield import_module(path)
