"""The use cases of webhooks: who may do what, and what repeated calls answer."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from evershell.auth.sealing import SigningKeySealing
from evershell.auth.signing_keys import new_key
from evershell.core.caller import Caller, CredentialKind
from evershell.core.change import FirstCall, IdempotencyKey
from evershell.core.errors import Failure
from evershell.core.event import EventType, Origin
from evershell.features.webhooks.rules import CreateWebhook, TaskScope, Webhook
from evershell.features.webhooks.use_cases import (
    create_webhook,
    delete_webhook,
    list_webhooks,
    replay_webhook,
    rotate_webhook_secret,
)
from tests.support.fake_webhooks import FakeWebhookStore
from tests.support.store.examples import USER
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
    # The creator is not a user, so there is no user id.
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


async def test_a_repeat_gets_the_webhook_without_its_secret(world: World) -> None:
    webhooks = FakeWebhookStore()
    key = IdempotencyKey("key", b"same")

    async def find_first_call(call: FirstCall) -> Any:
        return webhooks.first_calls[call.key]

    world.store.find_first_call = find_first_call  # type: ignore[method-assign]
    first, secret = await create(world, webhooks, key=key)
    assert secret
    await rotate_webhook_secret(caller(*BOTH), first.id, Origin(), webhooks, SEALING, world.clock)
    world.clock.advance(60)
    again, no_secret = await create(world, webhooks, key=key)
    assert (again.id, again.created_by, again.created_at) == (first.id, USER, first.created_at)
    assert no_secret == ""
    assert len(webhooks.webhooks) == 1
    # The same key from another caller counts as a different key.
    for by in (
        caller(*BOTH, actor_id="user_2"),
        caller(*BOTH, kind=CredentialKind.API_KEY),
    ):
        other, others_secret = await create(world, webhooks, by, key)
        assert other.id != first.id
        assert others_secret not in ("", secret)
    with pytest.raises(Failure) as raised:
        await create(world, webhooks, key=IdempotencyKey("key", b"other"))
    assert raised.value.slug == "idempotency_conflict"


async def test_with_own_a_caller_changes_only_their_webhooks(world: World) -> None:
    webhooks = FakeWebhookStore()
    made, _ = await create(world, webhooks)
    own = ("webhooks:write", "workspace:read:own")

    async def change(by: Caller) -> None:
        await replay_webhook(by, made.id, None, Origin(), webhooks, world.clock)
        await rotate_webhook_secret(by, made.id, Origin(), webhooks, SEALING, world.clock)
        await delete_webhook(by, made.id, Origin(), webhooks)

    for by in (
        caller(*own, actor_id="user_2"),
        # One of the two scopes is not enough, even in its form without `:own`.
        caller("webhooks:write"),
        caller("workspace:read"),
    ):
        for call in (
            replay_webhook(by, made.id, None, Origin(), webhooks, world.clock),
            rotate_webhook_secret(by, made.id, Origin(), webhooks, SEALING, world.clock),
            delete_webhook(by, made.id, Origin(), webhooks),
        ):
            with pytest.raises(Failure) as raised:
                await call
            assert raised.value.slug == "permission_denied"
    assert webhooks.webhooks == {made.id: made}
    await change(caller(*own))
    assert webhooks.webhooks == {}


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
