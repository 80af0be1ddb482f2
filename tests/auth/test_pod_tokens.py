"""Tokens between the control plane and its agents: each kind opens only its own service."""

import json
import time
from base64 import urlsafe_b64encode
from functools import partial
from typing import Any

import pytest
from cachetools import TTLCache
from joserfc import jws, jwt
from joserfc.jwk import OKPKey

from server.auth import pod_tokens
from server.auth.pod_tokens import PodTokens, new_key, public_key
from server.core.errors import Failure
from server.core.runtime import AgentIdentity
from tests.auth.fake_keys import FakeTimer

KEY = new_key()
AGENT = AgentIdentity("ws_1", 3)
GOOD = {"iss": "evershell", "aud": "runtime", "workspace_id": "ws_1", "epoch": 3}


def refused(tokens: PodTokens, bad: str) -> None:
    with pytest.raises(Failure) as raised:
        tokens.identify(bad)
    assert raised.value.slug == "unauthenticated"


def signed(claims: dict[str, Any], key: str = KEY, algorithm: str = "Ed25519") -> str:
    return jws.serialize_compact(
        {"alg": algorithm},
        json.dumps(claims),
        OKPKey.import_key(json.loads(key)),
        algorithms=[algorithm],
    )


@pytest.fixture
def tokens() -> PodTokens:
    return PodTokens(KEY)


def test_a_runtime_token_names_its_workspace_and_epoch(tokens: PodTokens) -> None:
    minted = tokens.runtime_token(AGENT)
    assert tokens.identify(minted) == AGENT
    assert PodTokens(KEY).identify(minted) == AGENT
    assert tokens.identify(tokens.runtime_token(AgentIdentity("ws_1", 4))) == AgentIdentity(
        "ws_1", 4
    )


def test_a_signal_token_is_not_a_runtime_token(tokens: PodTokens) -> None:
    refused(tokens, tokens.signal_token("ws_1"))


def test_each_kind_of_token_has_its_own_audience(
    tokens: PodTokens,
) -> None:
    key = OKPKey.import_key(json.loads(public_key(KEY)))
    runtime = jwt.decode(tokens.runtime_token(AGENT), key, algorithms=["Ed25519"]).claims
    signal = jwt.decode(tokens.signal_token("ws_1"), key, algorithms=["Ed25519"]).claims
    assert (runtime["aud"], signal["aud"]) == ("runtime", "agent")
    assert signal["workspace_id"] == "ws_1"
    assert time.time() < signal["exp"] <= time.time() + 60


def test_another_control_planes_token_is_refused(tokens: PodTokens) -> None:
    refused(tokens, PodTokens(new_key()).runtime_token(AGENT))


@pytest.mark.parametrize(
    "changes",
    [{"iss": "other"}, {"iss": None}, {"aud": "agent"}, {"aud": None}, {"aud": ["runtime"]}],
)
def test_a_wrong_claim_is_refused(tokens: PodTokens, changes: dict[str, object]) -> None:
    refused(tokens, signed({**GOOD, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"epoch": epoch}
            for epoch in (None, "3", "three", 3.0, True, [3], 0, -1, 2**63, 10**400)
        ),
        *(
            {"workspace_id": workspace_id}
            for workspace_id in (None, "", 7, ["ws_1"], "ws\0", "\ud800", "w" * 256)
        ),
    ],
)
def test_a_token_without_a_workspace_or_an_epoch_is_refused(
    tokens: PodTokens, changes: dict[str, object]
) -> None:
    refused(tokens, signed({**GOOD, **changes}))


@pytest.mark.parametrize("missing", ["epoch", "workspace_id"])
def test_a_token_that_lacks_a_claim_is_refused(tokens: PodTokens, missing: str) -> None:
    refused(tokens, signed({name: value for name, value in GOOD.items() if name != missing}))


def test_an_epoch_may_be_as_large_as_the_database_can_hold(tokens: PodTokens) -> None:
    assert tokens.identify(signed({**GOOD, "epoch": 2**63 - 1})).epoch == 2**63 - 1


def test_a_token_with_valid_claims_is_accepted(tokens: PodTokens) -> None:
    assert tokens.identify(signed(GOOD)) == AGENT


@pytest.mark.parametrize(
    "bad", ["", "a", "a.b.c", "eyJ.eyJ.eyJ", "é", "sk_abc", "WyJhbGciXQ.e30.AA"]
)
def test_a_malformed_token_is_refused(tokens: PodTokens, bad: str) -> None:
    refused(tokens, bad)


def test_a_token_without_an_algorithm_is_refused(tokens: PodTokens) -> None:
    head, body = (
        urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "none"}, GOOD)
    )
    refused(tokens, f"{head}.{body}.")


def test_a_token_nested_too_deep_for_a_parser_is_refused(tokens: PodTokens) -> None:
    for nested in ('{"a":' + "[" * 11_000, '{"a":' * 2_000):
        head = urlsafe_b64encode(nested.encode()).decode().rstrip("=")
        refused(tokens, f"{head}.{head}.a")


def test_the_public_key_cannot_sign() -> None:
    half = json.loads(public_key(KEY))
    assert "d" not in half and half["x"] == json.loads(KEY)["x"]


def test_a_signal_token_is_reused_for_half_of_its_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = FakeTimer()
    monkeypatch.setattr(pod_tokens, "TTLCache", partial(TTLCache, timer=timer))
    seconds = iter(range(1_000, 2_000))
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    tokens = PodTokens(KEY)
    first = tokens.signal_token("ws_1")
    timer.now = 29.9
    assert tokens.signal_token("ws_1") == first
    assert tokens.signal_token("ws_2") != first
    timer.now = 30.0
    assert tokens.signal_token("ws_1") != first
