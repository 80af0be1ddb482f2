"""Every property holds in every state of its model."""

import pytest

from tests.spec.model import NAMES, compiled, missing_program, model

pytestmark = pytest.mark.skipif(
    missing_program() is not None, reason="spin or gcc is not installed"
)


@pytest.mark.parametrize("name", NAMES)
def test_every_property_holds(name: str) -> None:
    checked = model(name)
    with compiled(checked) as checker:
        broken = [each.name for each in checked.properties if not checker.check(each).holds]
    assert broken == []
