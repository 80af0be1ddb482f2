"""Tokens between the control plane and its agents: each kind opens only its own service."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jws
from joserfc.jwk import OKPKey

from evershell.server.auth import pod_tokens
from evershell.server.auth.pod_tokens import PodTokens, new_key
from evershell.server.core.errors import Failure
from evershell.server.core.runtime import AgentIdentity
from evershell.server.pod.tokens import signal_token
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


def record_minted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The minutes of the signal tokens that are minted from now on."""
    minted: list[int] = []

    def record(secret: bytes, minute: int) -> str:
        minted.append(minute)
        return signal_token(secret, minute)

    monkeypatch.setattr(pod_tokens, "signal_token", record)
    return minted


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
    ((_, authorization),) = tokens.signal_metadata("ws_1", 3)
    refused(tokens, authorization.removeprefix("Bearer "))
    refused(tokens, tokens.signal_secret("ws_1", 3).hex())


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


def test_the_secret_of_an_agent_is_derived_from_the_signing_key(tokens: PodTokens) -> None:
    """As HKDF (RFC 5869) in another library derives it."""
    private_key = OKPKey.import_key(json.loads(KEY)).private_key
    assert private_key is not None
    hkdf = HKDF(SHA256(), length=32, salt=None, info=b"evershell signal ws_1 3")
    assert tokens.signal_secret("ws_1", 3) == hkdf.derive(private_key.private_bytes_raw())


def test_each_agent_has_its_own_secret(tokens: PodTokens) -> None:
    secrets = [
        tokens.signal_secret("ws_1", 3),
        tokens.signal_secret("ws_1", 4),
        tokens.signal_secret("ws_2", 3),
        tokens.signal_secret("ws_1 3", 4),
        PodTokens(new_key()).signal_secret("ws_1", 3),
    ]
    assert len(set(secrets)) == len(secrets)


def test_a_signal_token_is_minted_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    minted = record_minted(monkeypatch)
    timer = FakeTimer()
    tokens = PodTokens(KEY, timer)
    for now in (0.0, 59.9, 60.0, 119.9):
        timer.now = now
        tokens.signal_metadata("ws_1", 3)
    assert minted == [0, 1]


def test_a_bounded_number_of_signal_tokens_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_tokens, "_MAX_SIGNAL_TOKENS", 10)
    minted = record_minted(monkeypatch)
    tokens = PodTokens(KEY, FakeTimer())
    for epoch in range(1, 12):
        tokens.signal_metadata("ws_1", epoch)
        tokens.signal_metadata("ws_1", 1)
    assert len(minted) == 11
    tokens.signal_metadata("ws_1", 2)
    assert len(minted) == 12
