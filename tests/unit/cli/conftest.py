"""The environment in which the tests run commands."""

from pathlib import Path

import pytest


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sets an environment that names no service.

    Returns a folder for profiles and a stack's state.
    """
    for name in ("EVERSHELL_URL", "EVERSHELL_API_KEY", "EVERSHELL_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EVERSHELL_CONFIG", str(tmp_path / "config" / "profiles.json"))
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    return tmp_path
