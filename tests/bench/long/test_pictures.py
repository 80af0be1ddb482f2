"""The pictures of docs/scale.md. `make soak` and `make scale` install what draws them."""

import importlib.util
from xml.etree import ElementTree

import pytest

from tests.bench.curves import PICTURES, Measured, Picture

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        importlib.util.find_spec("matplotlib") is None,
        reason="matplotlib is not installed; `make soak` installs it",
    ),
]


def drawn(picture: Picture, measured: Measured) -> str:
    from tests.bench import pictures

    return pictures.draw(picture, picture.panels(measured), measured)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_equal_values_give_the_same_file(picture: Picture) -> None:
    measured = dict.fromkeys(picture.missing({}), (2.0, 1.0, 3.0))
    document = drawn(picture, measured)
    assert document == drawn(picture, measured)
    ElementTree.fromstring(document)  # noqa: S314
    for curves in picture.panels(measured).values():
        for curve in curves:
            assert curve.label in document


def test_other_values_give_another_picture_and_missing_ones_are_left_out() -> None:
    picture = PICTURES[0]
    measured = dict.fromkeys(picture.missing({}), (2.0, 1.0, 3.0))
    without = {row: values for row, values in measured.items() if "4 callers" not in row}
    documents = [drawn(picture, each) for each in (measured, without)]
    assert documents[0] != documents[1]
