"""Reads the files of a history."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True, eq=False)
class Call:
    """A call as its caller saw it."""

    caller: str
    # The organization of the caller. Each organization has its own workspaces.
    org: str
    name: str
    arguments: Mapping[str, Any]
    began: float
    # Infinite if the file has neither an answer nor an error.
    ended: float = math.inf
    # None unless the call succeeded.
    answer: Mapping[str, Any] | None = None
    error: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    # The messages of a stream, each with its time.
    messages: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)

    @property
    def workspace_id(self) -> str:
        return str(self.arguments.get("workspace_id", ""))

    def __str__(self) -> str:
        arguments = ", ".join(str(value) for value in self.arguments.values())
        ended = "" if math.isinf(self.ended) else f"{self.ended:.3f}"
        request = f" (request {self.request_id})" if self.request_id else ""
        call = f"{self.caller}: {self.name}({arguments}) → {self._result()}"
        return f"{self.began:.3f}-{ended} {call}{request}"

    def _result(self) -> str:
        if self.answer is None:
            details = [f"{name} {value}" for name, value in self.details.items() if name in _SHOWN]
            return ", ".join([self.error or "no answer", *details])
        shown = (str(self.answer[name]) for name in _SHOWN if self.answer.get(name) is not None)
        return ", ".join(shown) or "success"


# A call is printed with these fields of its answer, or of the details of its error.
_SHOWN = ("outcome", "task_id", "id", "status", "current_task_id", "cancel_requested_at", "on_hold")


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that a webhook got."""

    webhook_id: str
    at: float
    event: Mapping[str, Any]

    def __str__(self) -> str:
        event = ", ".join(str(self.event.get(name)) for name in ("seq", "type", "task_id"))
        return f"{self.at:.3f} {self.webhook_id} got {event}"


@dataclass(frozen=True, slots=True)
class History:
    """All calls in the order in which they began, and all deliveries in the order of arrival."""

    calls: list[Call]
    deliveries: list[Delivery]


def read(paths: Iterable[Path]) -> History:
    """Reads the files as one history."""
    calls, deliveries = list[Call](), list[Delivery]()
    for path in paths:
        begun: dict[str, Call] = {}
        for line in _lines(path):
            at = line["at"]
            if "delivery" in line:
                deliveries.append(Delivery(line["webhook_id"], at, line["delivery"]))
            elif "call" in line:
                call = Call(line["caller"], line["org"], line["call"], line["arguments"], at)
                begun[line["id"]] = call
                calls.append(call)
            elif "message" in line:
                begun[line["id"]].messages.append((at, line["message"]))
            else:
                call = begun.pop(line["id"])
                call.ended, call.answer = at, line.get("answer")
                call.error, call.details = line.get("error", ""), line.get("details", {})
                call.request_id = line.get("request_id", "")
    calls.sort(key=lambda each: each.began)
    deliveries.sort(key=lambda each: each.at)
    return History(calls, deliveries)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for text in file:
            # The last line is incomplete if the process that wrote it was killed.
            if text.endswith("\n"):
                yield json.loads(text)
