"""The committed bundle of the console is built from its current sources, which pass type checks."""

import gzip
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.stack import ROOT

# The maximum size of the script, compressed.
MAX_BYTES = 36_000


@pytest.fixture(scope="module")
def console() -> Iterator[ModuleType]:
    """The module that makes the bundle. Skips the tests if the packages cannot be installed."""
    spec = importlib.util.spec_from_file_location("console_bundle", ROOT / "protos" / "console.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.node_modules()
    except module.BuildError as error:
        pytest.skip(str(error)[:500])
    yield module


def test_the_bundle_is_that_of_the_sources(console: ModuleType, tmp_path: Path) -> None:
    console.build(tmp_path / "console")
    committed = ROOT / console.COMMITTED
    assert {path.name: path.read_bytes() for path in (tmp_path / "console").iterdir()} == {
        path.name: path.read_bytes() for path in committed.iterdir()
    }


def test_the_script_is_small(console: ModuleType) -> None:
    script = ROOT / console.COMMITTED / "console.js"
    assert len(gzip.compress(script.read_bytes())) <= MAX_BYTES


def test_the_types_of_the_sources_hold(console: ModuleType) -> None:
    console.check_types()
