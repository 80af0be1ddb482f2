"""Use cases of webhooks: who may do what, and what repeats answer."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from evershell.auth.sealing import SigningKeySealing
from evershell.auth.signing_keys import new_key
from evershell.core.caller import Caller, CredentialKind
from evershell.core.change import IdempotencyKey
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import EventType, Origin
from evershell.core.webhook import CreateWebhook, TaskScope, Webhook
from evershell.core.webhooks import (
    create_webhook,
    delete_webhook,
    list_webhooks,
    replay_webhook,
    rotate_webhook_secret,
)
from tests.support.fake_webhooks import FakeWebhookStore
from tests.support.world import World, caller

SEALING = SigningKeySealing(new_key())
BOTH = ("webhooks:write", "workspace:read")


async def create(
    world: World,
    webhooks: FakeWebhookStore,
    by: Caller | None = None,
    key: IdempotencyKey | None = None,
    **fields: Any,
) -> tuple[Webhook, str]:
    facts = {"url": "https://a.example/", "event_types": [EventType.TASK_COMPLETED], **fields}
    return await create_webhook(
        by or caller(*BOTH),
        CreateWebhook(**facts),
        Origin(),
        world.store,
        webhooks,
        SEALING,
        world.clock,
        key,
    )


@pytest.mark.parametrize(
    ("scopes", "missing"),
    [
        (("workspace:read",), "webhooks:write"),
        (("webhooks:write:own", "workspace:read"), "webhooks:write"),
        (("webhooks:write",), "workspace:read"),
    ],
)
async def test_a_creation_needs_two_scopes(
    world: World, scopes: tuple[str, ...], missing: str
) -> None:
    with pytest.raises(Failure) as raised:
        await create(world, FakeWebhookStore(), caller(*scopes))
    assert raised.value.slug == "permission_denied"
    assert missing in raised.value.details["required"]


async def test_it_gets_what_its_creator_may_read(world: World) -> None:
    webhooks = FakeWebhookStore()
    everything, _ = await create(world, webhooks)
    assert everything.creator_user_id is None
    own_scopes = ("webhooks:write", "workspace:read:own")
    own, _ = await create(world, webhooks, caller(*own_scopes))
    assert own.creator_user_id == own.created_by
    of_key, _ = await create(
        world, webhooks, caller(*own_scopes, actor_id="key_1", kind=CredentialKind.API_KEY)
    )
    # The id of no user.
    assert of_key.creator_user_id == ""
    listed = await list_webhooks(caller("workspace:read:own", actor_id="user_9"), webhooks)
    assert listed == []
    assert len(await list_webhooks(caller("workspace:read"), webhooks)) == 3


async def test_the_secret_is_stored_sealed(world: World) -> None:
    made, secret = await create(world, FakeWebhookStore(), headers={"authorization": "Bearer x"})
    assert secret.startswith("whsec_")
    assert secret.encode() not in made.sealed_secret
    assert made.sealed_headers is not None
    assert b"Bearer" not in made.sealed_headers
    assert SEALING.open(made.sealed_headers, made.id) == b'{"authorization": "Bearer x"}'


async def test_a_repeat_gets_the_first_answer(world: World) -> None:
    webhooks = FakeWebhookStore()
    key = IdempotencyKey("key", b"same")

    async def find_first_call(*_: Any) -> Any:
        return webhooks.first_calls["key"]

    world.store.find_first_call = find_first_call  # type: ignore[method-assign, assignment]
    first = await create(world, webhooks, key=key)
    await rotate_webhook_secret(
        caller(*BOTH), first[0].id, Origin(), webhooks, SEALING, world.clock
    )
    world.clock.advance(60)
    assert await create(world, webhooks, caller(*BOTH, actor_id="user_2"), key) == first
    assert len(webhooks.webhooks) == 1
    with pytest.raises(Failure) as raised:
        await create(world, webhooks, key=IdempotencyKey("key", b"other"))
    assert raised.value.slug == "idempotency_conflict"


async def test_a_worker_without_the_key_of_the_secret_answers_unavailable(world: World) -> None:
    webhooks = FakeWebhookStore()
    await create(world, webhooks, key=IdempotencyKey("key", b"same"))

    async def find_first_call(*_: Any) -> Any:
        return webhooks.first_calls["key"]

    world.store.find_first_call = find_first_call  # type: ignore[method-assign, assignment]
    with pytest.raises(UnavailableError):
        await create_webhook(
            caller(*BOTH),
            CreateWebhook(url="https://a.example/", event_types=[EventType.TASK_COMPLETED]),
            Origin(),
            world.store,
            webhooks,
            SigningKeySealing(new_key()),
            world.clock,
            IdempotencyKey("key", b"same"),
        )


async def test_a_webhook_of_another_organization_looks_like_none(world: World) -> None:
    webhooks = FakeWebhookStore()
    made, _ = await create(world, webhooks)
    stranger = caller(*BOTH, org_id="org_b")
    for call in (
        delete_webhook(stranger, made.id, Origin(), webhooks),
        rotate_webhook_secret(stranger, made.id, Origin(), webhooks, SEALING, world.clock),
        replay_webhook(stranger, made.id, None, Origin(), webhooks, world.clock),
    ):
        with pytest.raises(Failure) as raised:
            await call
        assert raised.value.slug == "webhook_not_found"


async def test_a_rotation_lets_both_secrets_sign_for_a_day(world: World) -> None:
    webhooks = FakeWebhookStore()
    made, _ = await create(world, webhooks)
    rotated, _ = await rotate_webhook_secret(
        caller(*BOTH), made.id, Origin(), webhooks, SEALING, world.clock
    )
    assert rotated.sealed_previous_secret == made.sealed_secret
    assert rotated.previous_secret_expires_at == world.clock() + timedelta(hours=24)


async def test_a_webhook_of_a_task_needs_the_task(world: World) -> None:
    webhooks = FakeWebhookStore()
    busy, running = await world.add_busy()
    scope = TaskScope(workspace_id=busy.id, task_id=running.id, name="mine")
    made, _ = await create(world, webhooks, task=scope)
    assert await list_webhooks(caller(*BOTH), webhooks) == []
    assert await list_webhooks(caller(*BOTH), webhooks, scope) == [made]
    for slug, missing in (
        ("task_not_found", TaskScope(workspace_id=busy.id, task_id="task_1", name="")),
        ("workspace_not_found", TaskScope(workspace_id="ws_1", task_id="task_1", name="")),
    ):
        with pytest.raises(Failure) as raised:
            await create(world, webhooks, task=missing)
        assert raised.value.slug == slug


def test_a_request_names_every_field_that_is_wrong() -> None:
    with pytest.raises(Failure) as raised:
        CreateWebhook(
            url="http://10.0.0.1/",
            event_types=[],
            description="x" * 201,
            allowed_networks=[ip_network("10.0.0.0/8")],
        )
    assert set(raised.value.details["fields"]) == {"url", "event_types", "description"}
