"""Which caller an `authorization` value stands for, and on which host the caller is accepted."""

from functools import partial
from pathlib import Path

import pytest
from cachetools import TTLCache

from evershell.auth import authenticator
from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator, HostBinding, bearer_token
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.caller import Caller, CredentialKind
from evershell.core.errors import Failure
from tests.support.identity_provider import AUDIENCE, ISSUER, RSA, jwk_set, token
from tests.unit.auth.fake_keys import FakeKeys, FakeTimer

CALLER = Caller("org_a", "user_1", CredentialKind.SESSION, frozenset())


@pytest.mark.parametrize("value", ["Bearer abc", "bearer abc", "BEARER abc", "Bearer   abc  "])
def test_a_bearer_token_is_extracted(value: str) -> None:
    assert bearer_token(value) == "abc"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "abc",
        "Bearer",
        "Bearer    ",
        "Basic abc",
        "Bearerabc",
        f"Bearer {'a' * 16_385}",
    ],
)
def test_a_value_without_a_bearer_token_is_refused(value: str | None) -> None:
    with pytest.raises(Failure) as raised:
        bearer_token(value)
    assert raised.value.slug == "unauthenticated"
    assert "authorization: Bearer" in raised.value.message


@pytest.fixture
def stored() -> FakeKeys:
    return FakeKeys()


@pytest.fixture
def authenticator_of_both(stored: FakeKeys, tmp_path: Path) -> Authenticator:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(jwk_set(RSA))
    return Authenticator(ApiKeys(stored.find), SessionTokens(JwkSet(str(jwks)), ISSUER, AUDIENCE))


async def test_the_prefix_selects_the_kind_of_credential(
    authenticator_of_both: Authenticator, stored: FakeKeys
) -> None:
    by_key = await authenticator_of_both.authenticate(f"Bearer {stored.add()}")
    by_session = await authenticator_of_both.authenticate(f"Bearer {token()}")
    assert (by_key.credential_kind, by_session.credential_kind) == (
        CredentialKind.API_KEY,
        CredentialKind.SESSION,
    )
    assert len(stored.asked) == 1


@pytest.mark.parametrize("bad", ["hello", "SK_abc", "pk_abc", "sk", "ey"])
async def test_another_kind_of_token_is_refused_without_a_lookup(
    authenticator_of_both: Authenticator, stored: FakeKeys, bad: str
) -> None:
    with pytest.raises(Failure) as raised:
        await authenticator_of_both.authenticate(f"Bearer {bad}")
    assert (raised.value.slug, stored.asked) == ("unauthenticated", [])


class Slugs:
    def __init__(self) -> None:
        self.by_org: dict[str, str] = {"org_a": "acme"}
        self.asked = 0

    async def find(self, org_id: str) -> str | None:
        self.asked += 1
        return self.by_org.get(org_id)


@pytest.mark.parametrize(
    "host", ["acme.evershell.ai", "ACME.Evershell.AI", "acme.evershell.ai:8443"]
)
async def test_an_organizations_own_host_is_accepted(host: str) -> None:
    await HostBinding("EverShell.ai", Slugs().find).check(CALLER, host)


@pytest.mark.parametrize(
    "host",
    [
        "other.evershell.ai",
        "evershell.ai",
        "acme.evershell.ai.example",
        "xacme.evershell.ai",
        "acmexevershell.ai",
        "a.acme.evershell.ai",
        "acme",
        ":443",
    ],
)
async def test_another_host_is_denied(host: str) -> None:
    with pytest.raises(Failure) as raised:
        await HostBinding("evershell.ai", Slugs().find).check(CALLER, host)
    assert raised.value.slug == "permission_denied"


async def test_an_unknown_organization_has_no_host() -> None:
    stranger = Caller("org_b", "user_2", CredentialKind.SESSION, frozenset())
    with pytest.raises(Failure) as raised:
        await HostBinding("evershell.ai", Slugs().find).check(stranger, "None.evershell.ai")
    assert raised.value.slug == "permission_denied"


async def test_a_cached_host_name_may_expire_during_its_lookup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timer = FakeTimer()
    monkeypatch.setattr(authenticator, "TTLCache", partial(TTLCache, timer=timer))
    binding = HostBinding("evershell.ai", Slugs().find)
    await binding.check(CALLER, "acme.evershell.ai")
    for ticks in range(1, 6):
        timer.now, timer.tick = timer.now + 60 - ticks, 1.0
        await binding.check(CALLER, "acme.evershell.ai")
        timer.tick = 0.0
        timer.now += 60
        await binding.check(CALLER, "acme.evershell.ai")
