"""The Compose file: its schema, its settings, and the folder in which the service keeps files."""

from typing import Any

import pytest
import yaml

from evershell.app.settings import Settings
from tests.deploy.long.manifests import tools

FILE = tools.DEPLOY / "compose" / "compose.yaml"
# Settings of PostgreSQL's image.
DATABASE_SETTINGS = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def test_it_fits_the_schema_of_compose() -> None:
    tools.validate_compose(FILE)


def test_the_settings_exist(services: dict[str, Any]) -> None:
    names = {name.upper() for name in Settings.model_fields}
    assert set(services["evershell"]["environment"]) <= names
    assert set(services["database"]["environment"]) == DATABASE_SETTINGS


def test_the_image_has_the_folder_of_the_state(services: dict[str, Any]) -> None:
    """The image's user owns this folder, and therefore also a new volume that is mounted there."""
    state_dir = services["evershell"]["environment"]["STATE_DIR"]
    assert services["evershell"]["volumes"] == [f"state:{state_dir}"]
    built = (tools.DEPLOY / "Containerfile").read_text()
    user = built.partition("USER ")[2].split()[0].partition(":")[0]
    assert f"install -d -o {user} -g {user} -m 700 {state_dir}" in built
