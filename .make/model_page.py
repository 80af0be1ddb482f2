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
property does not hold. Each transition names the function of the code that it stands for, and a
test fails if that function is gone. A model does not prove that the function does what the
transition does: the tests of the function show that.

To show that the properties find mistakes, each model has mutations. Each is one change, like a
mistake in the code. Only the named property finds it: without this property, the model passes.
`make spec` explores all models and all mutations, and prints the numbers of states and the times.
It needs `spin` and `gcc`.
"""


def page() -> str:
    """The page: a section for each model."""
    return "".join([_HEAD, *(part for name in NAMES for part in _section(model(name)))])


def _section(shown: Model) -> Iterator[str]:
    title, *rest = shown.head
    yield f"\n## {shown.name.capitalize()}\n\n[{title}](../{shown.path})\n\n"
    yield "".join(f"{paragraph}\n\n" for paragraph in rest)
    yield "| property | what holds |\n|---|---|\n"
    yield from (
        f'| <a id="{shown.name}-{each.name}"></a>`{each.name}` | {each.sentence} |\n'
        for each in shown.properties
    )
    yield "\n| mutation | found by |\n|---|---|\n"
    for each in mutants.of(shown.name):
        yield f"| {each.defect} | `{each.found_by}` |\n"
