"""Each mutation of a model is found by the property that it names, and by no other."""

import pytest

from tests.spec.__main__ import findings
from tests.spec.model import missing_program
from tests.spec.mutants import MUTANTS, Mutant

pytestmark = pytest.mark.skipif(
    missing_program() is not None, reason="spin or gcc is not installed"
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: f"{each.model}: {each.defect}")
def test_the_property_finds_the_mutation(mutant: Mutant) -> None:
    assert findings(mutant) == [mutant.found_by]
