"""The spec of an agent: which signing key its secrets come from, and which model key it has."""

import json
from pathlib import Path

import pytest

from evershell.app.pod_backends import spec_for
from evershell.app.settings import Settings
from evershell.auth.agent_certificates import AgentCertificates
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key, with_first_key, with_new_key
from evershell.core.runtime import AgentIdentity
from tests.support.agent_tls import is_issued_by

OLD = new_key()
BOTH = with_new_key(OLD)
NEW = with_first_key(BOTH)


@pytest.mark.parametrize(("signing_key", "text"), [(0, NEW), (1, OLD)])
def test_a_spec_is_made_with_the_signing_key_of_the_agent(signing_key: int, text: str) -> None:
    """Bootstrap makes the spec with the same key as the agent's token."""
    made = spec_for(Settings(), PodTokens(BOTH), AgentCertificates(BOTH))
    spec = made(AgentIdentity("ws_1", 3, signing_key))
    alone, certificates = PodTokens(text), AgentCertificates(text)
    assert spec.runtime_secret == alone.runtime_secret("ws_1", 3).hex()
    assert spec.signal_secret == alone.signal_secret("ws_1", 3).hex()
    assert is_issued_by(spec.tls_certificate, certificates.control_plane().trusted)


def test_the_key_of_the_model_in_the_file_of_keys_is_read_for_each_agent(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    settings = Settings.model_validate(
        {"openai_api_key": "from the environment", "agent_keys_file": path}
    )
    made = spec_for(settings, PodTokens(NEW), None)
    for key in ("the first", "the second"):
        path.write_text(json.dumps({"OPENAI_API_KEY": key}))
        assert made(AgentIdentity("ws_1", 3)).openai_api_key == key
    path.write_text('{"NAME": "another key"}')
    assert made(AgentIdentity("ws_1", 3)).openai_api_key == "from the environment"
    without_file = settings.model_copy(update={"agent_keys_file": None})
    key = spec_for(without_file, PodTokens(NEW), None)(AgentIdentity("ws_1", 3)).openai_api_key
    assert key == "from the environment"


def test_the_keys_of_an_agent_are_read_for_each_agent(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    made = spec_for(Settings(agent_keys_file=path), PodTokens(NEW), None)
    path.write_text('{"NAME": "a long key"}')
    spec = made(AgentIdentity("ws_1", 3))
    assert spec.keys == {"NAME": "a long key"}
    assert "a long key" not in repr(spec)
    for text in ("secret", '["a long key"]', '{"NAME": 7}', '{"NAME": "short"}'):
        path.write_text(text)
        with pytest.raises(OSError, match="AGENT_KEYS_FILE is not") as error:
            made(AgentIdentity("ws_1", 3))
        assert "secret" not in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="AGENT_KEYS_FILE cannot be read"):
        made(AgentIdentity("ws_1", 3))
