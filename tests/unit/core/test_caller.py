"""The scopes of a caller, and which workspaces they cover."""

import pytest

from evershell.core.caller import TEMPLATE_SCOPES, CredentialKind, KeyTemplate
from evershell.core.errors import Failure
from tests.support.world import USER, caller, workspace

KEY = CredentialKind.API_KEY


def test_an_own_scope_covers_what_the_caller_created() -> None:
    permission = caller("workspace:read:own").permission("workspace:read")
    assert permission.covers(workspace(created_by_user_id=USER))
    assert not permission.covers(workspace(created_by_user_id="user_2"))
    assert not permission.covers(workspace(created_by_user_id=None))


def test_the_wider_of_two_scopes_applies() -> None:
    permission = caller("workspace:read:own", "workspace:read").permission("workspace:read")
    assert permission.covers(workspace(created_by_user_id="user_2"))


@pytest.mark.parametrize("creator", [None, "key_1"])
def test_an_own_scope_of_an_api_key_covers_nothing(creator: str | None) -> None:
    key = caller("workspace:read:own", actor_id="key_1", kind=KEY)
    assert key.user_id is None
    assert not key.permission("workspace:read").covers(workspace(created_by_user_id=creator))


@pytest.mark.parametrize(
    "held",
    ["workspace:read", "workspace", "workspace:write:other", "tasks:write", "workspace:write "],
)
def test_another_scope_is_refused(held: str) -> None:
    with pytest.raises(Failure) as raised:
        caller(held).permission("workspace:write")
    assert raised.value.slug == "permission_denied"
    assert raised.value.details == {"required": ["workspace:write", "workspace:write:own"]}


def test_another_organizations_workspace_is_not_found() -> None:
    permission = caller().permission("workspace:read")
    theirs = workspace(org_id="org_b")
    for found in (theirs, None):
        with pytest.raises(Failure) as raised:
            permission.check(found, theirs.id)
        assert (raised.value.slug, raised.value.details["resource_name"]) == (
            "workspace_not_found",
            theirs.id,
        )


def test_an_own_scope_is_refused_on_a_colleagues_workspace() -> None:
    with pytest.raises(Failure) as raised:
        caller("workspace:read:own", actor_id="user_2").permission("workspace:read").check(
            workspace(), "ws_1"
        )
    assert (raised.value.slug, raised.value.details["required"]) == (
        "permission_denied",
        ["workspace:read"],
    )


def test_each_template_has_its_scopes() -> None:
    submit = {"workspace:read", "workspace:write", "tasks:write", "audit:read"}
    assert TEMPLATE_SCOPES[KeyTemplate.SUBMIT_OBSERVE] == submit
    assert TEMPLATE_SCOPES[KeyTemplate.FULL_ACCESS] == submit | {"caps:write", "webhooks:write"}
    assert set(TEMPLATE_SCOPES) == set(KeyTemplate)
