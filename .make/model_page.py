"""The page of the models and their mutations, from tests/spec: docs/model.md."""

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.spec import mutants  # noqa: E402 - the path comes first
from tests.spec.model import NAMES, Model, model  # noqa: E402

_HEAD = """\
# Model of the protocol

<!-- Written by `make gen` from tests/spec. Do not edit. -->

The protocol of a cancellation is also written as small models for [Spin](https://spinroot.com).
Spin explores every state of a model, with every order of its steps, and looks for one in which a
property does not hold. Each transition names the function of the code that it stands for. A model
does not prove that the function does what the transition does: the tests of the function show that.

To show that the properties find mistakes, each model has
[mutations](../tests/spec/mutants.py). Each is one change, like a mistake in the code, which only
one property finds. `make spec`, which needs `spin` and `gcc`, explores all models and all
mutations, and prints them. Each model says at its beginning what it covers.
"""


def page() -> str:
    """The page: a section for each model."""
    return "".join([_HEAD, *(part for name in NAMES for part in _section(model(name)))])


def _section(shown: Model) -> Iterator[str]:
    title, *rest = shown.head
    yield f"\n## {shown.name.capitalize()}\n\n[{title}](../{shown.path})\n\n"
    yield "".join(f"{part}\n\n" for part in rest if not part.startswith("Covers: "))
    yield "| property | what holds | mutations |\n|---|---|---:|\n"
    found = [each.found_by for each in mutants.of(shown.name)]
    yield from (
        f'| <a id="{shown.name}-{each.name}"></a>`{each.name}` | {each.sentence} '
        f"| {found.count(each.name)} |\n"
        for each in shown.properties
    )
