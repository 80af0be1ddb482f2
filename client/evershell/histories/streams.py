"""Judges what watchers and webhooks got."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from evershell.histories.claims import LATE_SECONDS, Seen
from evershell.histories.lines import Call, Delivery, History

# A rule, and the calls or events that violate it.
Contradiction = tuple[str, list[object]]
_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a log, as a watcher or a webhook first got it."""

    source: object
    event: Mapping[str, Any]

    def identity(self) -> tuple[object, ...]:
        completed = self.event.get("task_completed", {})
        return self.event["type"], self.event.get("task_id", ""), completed.get("status", "")


def contradictions(history: History) -> Iterator[Contradiction]:
    """Yields the contradictions in what watchers and webhooks got."""
    logs: dict[str, dict[int, _Entry]] = defaultdict(dict)
    for call in history.calls:
        if call.messages:
            yield from _watched(call, logs[call.workspace_id])
    for delivery in history.deliveries:
        log = logs[delivery.event["workspace_id"]]
        yield from _agrees(log, _Entry(delivery, delivery.event))
    for log in logs.values():
        yield from _ends_once([log[seq] for seq in sorted(log)])
    yield from _delivered(history, logs)


def _watched(call: Call, log: dict[int, _Entry]) -> Iterator[Contradiction]:
    """Checks that a stream begins after `after`, and has every entry once and in order."""
    last, before = int(call.arguments.get("after", 0)), None
    for at, message in call.messages:
        if "event" not in message:
            continue
        event = message["event"]
        seen, seq = Seen(call.caller, at, event), int(event["seq"])
        # The first entries of a log may have been removed.
        if seq != last + 1 and (last or seq < 1):
            rule = f"a watcher that has {last} gets {last + 1} next"
            yield rule, [before or call, seen]
        last, before = seq, seen
        yield from _agrees(log, _Entry(seen, event))


def _agrees(log: dict[int, _Entry], entry: _Entry) -> Iterator[Contradiction]:
    first = log.setdefault(int(entry.event["seq"]), entry)
    if first.identity() != entry.identity():
        yield "an entry of a log never changes", [first.source, entry.source]


def _ends_once(log: list[_Entry]) -> Iterator[Contradiction]:
    ends: dict[str, _Entry] = {}
    for entry in log:
        kind, task, _ = entry.identity()
        if end := ends.get(str(task)):
            yield "nothing follows the end of a task in its log", [end.source, entry.source]
        if kind == "task_completed":
            ends[str(task)] = entry


def _until(history: History) -> float:
    """The `time` of an event at the end of the history, plus LATE_SECONDS. Later ones are not due.

    Compares the clock of the service with the times at which events were seen, by their median.
    """
    seen = [(each.at, each.event) for each in history.deliveries]
    for call in history.calls:
        seen += [(at, message["event"]) for at, message in call.messages if "event" in message]
    ahead = [_time(event) - at for at, event in seen if "time" in event]
    if not ahead:
        return math.inf
    return max(at for at, _ in seen) + median(ahead) + LATE_SECONDS


def _time(event: Mapping[str, Any]) -> float:
    """When the event was recorded, in seconds since 1970, by the clock of the service."""
    return datetime.fromisoformat(event["time"]).timestamp() if "time" in event else 0.0


def _delivered(history: History, logs: dict[str, dict[int, _Entry]]) -> Iterator[Contradiction]:
    # The deliveries to each webhook, by workspace and task.
    got: dict[str, dict[tuple[str, str], list[Delivery]]] = defaultdict(lambda: defaultdict(list))
    for delivery in history.deliveries:
        event = delivery.event
        of_event = event["workspace_id"], str(event.get("task_id", ""))
        of_task = got[delivery.webhook_id][of_event]
        seqs = [int(each.event["seq"]) for each in of_task]
        seq = int(delivery.event["seq"])
        if of_task and seq not in seqs and seq < max(seqs):
            rule = "a webhook gets the events of a task in their order"
            yield rule, [of_task[-1], delivery]
        of_task.append(delivery)
    deleted = {str(each.arguments.get("webhook_id")) for each in _named(history, "DeleteWebhook")}
    until = _until(history)
    for call in _named(history, "CreateWebhook"):
        if call.answer is None or call.answer["webhook"]["id"] in deleted:
            continue
        webhook = call.answer["webhook"]
        later = {
            each.answer["task_id"]
            for each in _named(history, "SubmitTask")
            if each.answer is not None and each.org == call.org and each.began > call.ended
        }
        for workspace_id, log in logs.items():
            for seq, entry in log.items():
                kind, task, _ = entry.identity()
                of_task = got[webhook["id"]][workspace_id, str(task)]
                sent = (int(each.event["seq"]) for each in of_task)
                if _time(entry.event) > until:
                    # A clock was wrong, and the delivery is due later.
                    continue
                if kind in webhook["event_types"] and task in later and seq not in sent:
                    yield f"{webhook['id']} gets every event of its types", [call, entry.source]


def _named(history: History, name: str) -> list[Call]:
    return [each for each in history.calls if each.name == name]
