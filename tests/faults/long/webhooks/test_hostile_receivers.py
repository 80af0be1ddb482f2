"""Webhooks with hostile receivers, two real workers, and a thousand tasks that end.

The receivers listen on 127.0.0.1, which the settings allow. 127.0.0.2 stands for addresses that the
service must not call. The workers see their own /etc/hosts, in a separate mount namespace.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import LiteralString

import psutil
import pytest
from standardwebhooks import Webhook

from tests.faults.long.webhooks.ends import (
    TYPES,
    EventKey,
    accepted,
    disorder,
    end,
    event_of,
    has_all,
    webhook_ids,
)
from tests.support.alive import is_alive
from tests.support.receivers import (
    Behaviour,
    Receiver,
    Receivers,
    accept,
    accept_after,
    fail_at_random,
    fail_with_endless_body,
    hang,
    redirect,
    send_endless_headers,
)
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")

ENDS = 1_000
ALLOWED, FORBIDDEN = "127.0.0.1", "127.0.0.2"
# A host name whose address changes during the test.
NAME = "receiver.test"
# How many requests a worker sends to a receiver at once, and how many deliveries it claims at once.
IN_FLIGHT, CLAIMED = 8, 100
_LIMIT_SECONDS = 50.0
# A shell script that mounts the file $0 over /etc/hosts and runs the rest of its arguments.
_WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


class Hosts:
    """The /etc/hosts of the workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.point(FORBIDDEN)

    def point(self, address: str) -> None:
        """Gives NAME this address.

        Overwrites the file, because a new file would not be the mounted one.
        """
        self.path.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    return Hosts(tmp_path_factory.mktemp("hosts") / "hosts")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("webhooks")
    made = Stack(folder / "state", WEBHOOK_ALLOWED_NETWORKS=f"{ALLOWED}/32")
    made.runner = ("unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(hosts.path))
    with made.started():
        yield made


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    with Receivers().running() as running:
        yield running


class Webhooks:
    """The webhooks of a test."""

    def __init__(self, stack: Stack, receivers: Receivers) -> None:
        self._rest = stack.rest()
        self._receivers = receivers
        self.ids: dict[str, str] = {}
        self.secrets: dict[str, str] = {}

    def add(self, name: str, behaviour: Behaviour, host: str = ALLOWED) -> Receiver:
        """Creates a receiver with a webhook for it, and returns the receiver."""
        receiver = self._receivers.add(behaviour)
        url = f"http://{host}:{receiver.port}/{name}"
        created = self._rest.post("/v1/webhooks", {"url": url, "event_types": TYPES}, 201)
        self.ids[name], self.secrets[name] = created["webhook"]["id"], created["secret"]
        return receiver

    def rotate(self, name: str) -> str:
        """Rotates the secret of a webhook. Returns the new secret."""
        path = f"/v1/webhooks/{self.ids[name]}/secret/rotate"
        secret: str = self._rest.post(path, {}, 200)["secret"]
        return secret

    def remove_all(self) -> None:
        for webhook_id in self.ids.values():
            assert self._rest.call("DELETE", f"/v1/webhooks/{webhook_id}").status_code == 200


@pytest.fixture
def webhooks(stack: Stack, receivers: Receivers) -> Iterator[Webhooks]:
    made = Webhooks(stack, receivers)
    yield made
    made.remove_all()


def pass_time(stack: Stack, of: LiteralString) -> None:
    """Makes the deliveries that match the condition `of` due now.

    This ends the pauses between attempts, or the leases of claims.
    """
    query = "UPDATE webhook_deliveries SET due_at = now() WHERE due_at > now() AND "
    with stack.database() as database:
        database.execute(query + of)


def await_all(stack: Stack, receivers: Iterable[Receiver], ended: set[EventKey]) -> None:
    """Waits until each receiver has accepted all events. Skips the pauses between attempts."""
    waiting = list(receivers)
    until = time.monotonic() + _LIMIT_SECONDS
    while waiting:
        assert time.monotonic() < until, [each.accepted for each in waiting]
        pass_time(stack, "claim IS NULL")
        with suppress(TimeoutError):
            eventually(lambda: has_all(waiting[0], ended), 1.0)
        waiting = [each for each in waiting if not has_all(each, ended)]


def pending(stack: Stack) -> dict[str | None, int]:
    """Returns the number of pending deliveries by claim; None stands for no claim."""
    query = "SELECT claim, count(*) FROM webhook_deliveries WHERE due_at IS NOT NULL GROUP BY claim"
    with stack.database() as database:
        return dict(database.execute(query).fetchall())


def test_every_end_is_delivered_in_order_and_nothing_to_a_forbidden_address(
    stack: Stack, hosts: Hosts, receivers: Receivers, webhooks: Webhooks
) -> None:
    elsewhere = receivers.add(accept)
    well = webhooks.add("well", accept)
    hostile = {
        "down": webhooks.add("down", accept),
        "slow": webhooks.add("slow", accept_after(0.02)),
        "redirecting": webhooks.add("redirecting", redirect(f"http://{elsewhere.address}/")),
        "failing": webhooks.add("failing", fail_at_random(0.5)),
        "hanging": webhooks.add("hanging", hang),
        "headers": webhooks.add("headers", send_endless_headers),
        "body": webhooks.add("body", fail_with_endless_body),
        # The name of this receiver has the forbidden address at first.
        "rebound": webhooks.add("rebound", accept, NAME),
    }
    receivers.refuse(hostile["down"])
    trap = Receiver(accept, FORBIDDEN, hostile["rebound"].port)
    receivers.listen(trap)

    ended = end(stack, ENDS)
    # The hostile receivers do not delay the deliveries to the receiver `well`.
    eventually(lambda: has_all(well, ended), _LIMIT_SECONDS)
    for name in ("down", "redirecting", "hanging", "headers", "body", "rebound"):
        assert accepted(hostile[name]) == set(), name
    for name in ("redirecting", "hanging", "headers", "body"):
        assert hostile[name].requests, name

    receivers.listen(hostile["down"])
    hosts.point(ALLOWED)
    for receiver in hostile.values():
        receiver.behaviour = accept
    receivers.end_connections()

    await_all(stack, hostile.values(), ended)
    for name, receiver in {"well": well, **hostile}.items():
        assert disorder(receiver) == [], name
        names = webhook_ids(receiver).values()
        # All attempts of an event have the same id, and each event has a different one.
        assert len(names) == len(set.union(*names)) == len(ended), name
    assert (elsewhere.connections, trap.connections) == (0, 0)


def test_deliveries_of_a_killed_worker_are_taken_over(
    stack: Stack, receivers: Receivers, webhooks: Webhooks
) -> None:
    receiver = webhooks.add("hanging", hang)
    # More events than a worker claims at once.
    ended = end(stack, 3 * CLAIMED)
    eventually(lambda: len(pending(stack).keys() - {None}) == len(stack.pids("serve")))
    (delivering,) = psutil.Process(stack.pids("serve")[0]).children()
    stack.kill(stack.pids("serve")[0])
    # The process that delivers for the killed worker may record results until it ends.
    eventually(lambda: not is_alive(delivering))
    receiver.behaviour = accept
    receivers.end_connections()

    def is_all_but_of_the_killed_one() -> bool:
        pass_time(stack, "claim IS NULL")
        left = pending(stack)
        return len(left) == 1 and sum(left.values()) == len(
            {event.task_id for event in ended - accepted(receiver)}
        )

    eventually(is_all_but_of_the_killed_one, _LIMIT_SECONDS)
    pass_time(stack, "claim IS NOT NULL")
    await_all(stack, [receiver], ended)
    assert disorder(receiver) == []


def test_a_rotation_loses_nothing(stack: Stack, receivers: Receivers, webhooks: Webhooks) -> None:
    receiver = webhooks.add("rotated", accept_after(0.02))
    before = end(stack, 2 * CLAIMED)
    eventually(lambda: len(receiver.requests) > IN_FLIGHT)
    old, new = Webhook(webhooks.secrets["rotated"]), Webhook(webhooks.rotate("rotated"))
    after = end(stack, CLAIMED)
    await_all(stack, [receiver], before | after)
    for request in receiver.requests:
        old.verify(request.body, request.headers)
        if event_of(request.body) in after:
            new.verify(request.body, request.headers)
