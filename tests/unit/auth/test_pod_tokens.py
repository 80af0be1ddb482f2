"""Tokens between the control plane and its agents. Each kind is accepted by one service only."""

import base64
import json

import pytest

from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.core.errors import Failure
from evershell.core.runtime import AgentIdentity
from tests.support.runtime_tokens import runtime_token
from tests.unit.auth.fake_keys import FakeTimer

KEY = new_key()
AGENT = AgentIdentity("ws_1", 3)
MINUTE = 60.0
# A moment at which a minute begins.
NOW = 28_000_000 * MINUTE
MALFORMED = ["", ".", "...", "a.b.c.d", "é", "\ud800", "sk_abc", "eyJ.eyJ.eyJ", "1" * 9_000]
BAD_EPOCHS = ["", "0", "-3", "+3", "03", " 3", "3 ", "3.0", "0x3", "٣", "1_0", "9" * 5_000]


def refused(tokens: PodTokens, bad: str) -> Failure:
    with pytest.raises(Failure) as raised:
        tokens.identify(bad)
    assert raised.value.slug == "unauthenticated"
    return raised.value


@pytest.fixture
def timer() -> FakeTimer:
    timer = FakeTimer()
    timer.now = NOW
    return timer


@pytest.fixture
def tokens(timer: FakeTimer) -> PodTokens:
    return PodTokens(KEY, timer)


@pytest.fixture
def good(tokens: PodTokens) -> str:
    """The agent's token for this minute."""
    return runtime_token(tokens, "ws_1", 3, NOW)


def test_a_runtime_token_names_its_workspace_and_epoch(tokens: PodTokens, good: str) -> None:
    assert tokens.identify(good) == AGENT
    # The token can be used again while it is valid.
    assert tokens.identify(good) == AGENT
    other = runtime_token(tokens, "ws_1", 4, NOW)
    assert tokens.identify(other) == AgentIdentity("ws_1", 4)


@pytest.mark.parametrize(
    ("age_seconds", "is_accepted"),
    [
        (-60.1, False),
        (-60.0, True),
        (0.0, True),
        (119.9, True),
        (120.0, False),
    ],
)
def test_a_runtime_token_is_accepted_for_three_minutes(
    tokens: PodTokens, timer: FakeTimer, good: str, age_seconds: float, is_accepted: bool
) -> None:
    """This allows the clocks of the two sides to differ by a minute."""
    timer.now = NOW + age_seconds
    if is_accepted:
        assert tokens.identify(good) == AGENT
    else:
        # The answer contains the time, with which the agent can make another token.
        assert refused(tokens, good).details == {"unix_seconds": int(timer.now)}


def test_only_the_holder_of_the_secret_learns_that_a_token_is_of_another_time(
    tokens: PodTokens, timer: FakeTimer, good: str
) -> None:
    timer.now = NOW + 10 * MINUTE
    assert refused(tokens, good[:-1] + ("1" if good[-1] == "0" else "0")).details == {}


@pytest.mark.parametrize("part", range(4))
def test_the_parts_of_two_runtime_tokens_cannot_be_mixed(
    tokens: PodTokens, good: str, part: int
) -> None:
    """The two tokens differ in workspace, epoch and minute."""
    other = runtime_token(tokens, "ws_2", 4, NOW + MINUTE).split(".")
    parts = good.split(".")
    parts[part] = other[part]
    refused(tokens, ".".join(parts))


def test_a_secret_or_a_signal_token_is_not_a_runtime_token(tokens: PodTokens, good: str) -> None:
    secrets = (tokens.runtime_secret("ws_1", 3), tokens.signal_secret("ws_1", 3))
    names = good.rpartition(".")[0]
    for code in (tokens.signal_token("ws_1", 3), *(secret.hex() for secret in secrets)):
        for bad in (code, f"{names}.{code}"):
            refused(tokens, bad)


def test_another_control_planes_token_is_refused(tokens: PodTokens) -> None:
    refused(tokens, runtime_token(PodTokens(new_key()), "ws_1", 3, NOW))


def test_a_malformed_token_is_refused(tokens: PodTokens, good: str) -> None:
    workspace_id, epoch, minute, code = good.split(".")
    for bad in MALFORMED:
        refused(tokens, bad)
    for bad_epoch in BAD_EPOCHS:
        refused(tokens, f"{workspace_id}.{bad_epoch}.{minute}.{code}")
    for bad_minute in ("", f"0{minute}", f"+{minute}", f"-{minute}", "٣", "9" * 5_000):
        refused(tokens, f"{workspace_id}.{epoch}.{bad_minute}.{code}")
    for bad_code in ("", code[:-1], code + "0", code.upper(), code[::-1], f"{code}\n", "é" * 64):
        refused(tokens, f"{workspace_id}.{epoch}.{minute}.{bad_code}")
    for bad_id in ("", "ws 1", "ws\0", "ws_1 3", "é", "w" * 129, f" {workspace_id}"):
        refused(tokens, f"{bad_id}.{epoch}.{minute}.{code}")
    assert tokens.identify(good) == AGENT


def test_the_secrets_of_an_agent_are_derived_from_the_signing_key() -> None:
    """If this derivation changed, agents that run during an upgrade would be locked out."""
    private_key = base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()
    public_key = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
    key = {"kty": "OKP", "crv": "Ed25519", "d": private_key, "x": public_key}
    tokens = PodTokens(json.dumps(key))
    assert [tokens.runtime_secret("ws_1", 3).hex(), tokens.signal_secret("ws_1", 3).hex()] == [
        "22763d8d0cc5bdbad07552b2ee9a05ebc4a12783226fa717453e46e4fd5c759d",
        "32acf77996a558180afc5e05708b5768e1a62dd18888fa21924a519ead772da1",
    ]


def test_each_agent_and_each_direction_has_its_own_secret(tokens: PodTokens) -> None:
    secrets = [
        derive(*agent)
        for each in (tokens, PodTokens(new_key()))
        for derive in (each.runtime_secret, each.signal_secret)
        for agent in [("ws_1", 3), ("ws_1", 4), ("ws_2", 3), ("ws_1 3", 4)]
    ]
    assert len(set(secrets)) == len(secrets) == 16
