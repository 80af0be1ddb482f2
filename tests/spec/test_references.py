"""The models name only functions that exist, and each mutation changes its model."""

import re

import pytest

from tests.spec.model import NAMES, ROOT, model
from tests.spec.mutants import MUTANTS, of

_COMMENT = re.compile(r"\s*/\* (environment: .+|\S+/\S+: [\w, ]+) \*/$")


def _is_defined(path: str, name: str) -> bool:
    text = (ROOT / path).read_text() if (ROOT / path).is_file() else ""
    return re.search(rf"\b(def|class|FUNCTION) {name}\b", text) is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_function_that_a_model_names_exists(name: str) -> None:
    references = model(name).references
    assert references
    assert [each for each in sorted(references) if not _is_defined(*each)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_transition_names_what_it_stands_for(name: str) -> None:
    lines = model(name).text.partition("\ninit\n")[0].splitlines()
    unnamed = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if "atomic {" in line and not _COMMENT.match(lines[number - 2])
    ]
    assert unnamed == []


@pytest.mark.parametrize("name", NAMES)
def test_every_property_has_a_mutation(name: str) -> None:
    text = model(name).text
    properties = [each.name for each in model(name).properties]
    assert len(properties) == len(re.findall(r"^ltl ", text, re.MULTILINE))
    assert {each.found_by for each in of(name)} == set(properties)


def test_every_mutation_changes_its_model() -> None:
    assert [each.defect for each in MUTANTS if each.mutated == model(each.model)] == []
    assert len({(each.model, each.defect) for each in MUTANTS}) == len(MUTANTS)
