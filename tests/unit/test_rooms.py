"""The names of the modules in rooms, the folders of evershell.features."""

from collections import Counter
from pathlib import Path

from evershell import features


def test_a_name_that_stands_in_two_rooms_is_one_of_the_fixed_set() -> None:
    modules = Path(features.__path__[0]).glob("*/*.py")
    counts = Counter(path.stem for path in modules)
    assert {name for name, count in counts.items() if count > 1} <= features.MODULES
