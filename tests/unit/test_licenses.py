"""The licenses of the npm packages that callers get. The image build checks Python packages."""

import importlib.util
import json
from typing import Any

import pytest

from tests.support.stack import ROOT

SPEC = importlib.util.spec_from_file_location("licenses", ROOT / ".make" / "licenses.py")
assert SPEC is not None and SPEC.loader is not None
licenses = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(licenses)
BUNDLE = ROOT / "gen" / "evershell" / "edge" / "console" / "LICENSES.txt"


def shipped(folder: str) -> dict[str, dict[str, Any]]:
    """Returns the packages of a lock file, without the packages that only developers need."""
    packages = json.loads((ROOT / folder / "package-lock.json").read_text())["packages"]
    return {
        path.removeprefix("node_modules/"): package
        for path, package in packages.items()
        if path and not package.get("dev")
    }


@pytest.mark.parametrize("folder", ["clients/typescript", "envoy/console"])
def test_each_license_is_allowed(folder: str) -> None:
    named = {name: package["license"] for name, package in shipped(folder).items()}
    refused = {name: each for name, each in named.items() if not licenses.ALLOWED.search(each)}
    assert named and not refused


def test_the_console_comes_with_the_licenses_of_its_packages() -> None:
    text = BUNDLE.read_text()
    packages = shipped("envoy/console")
    for name, package in packages.items():
        assert f"{name} {package['version']}: {package['license']}\n" in text
    assert text.count("Permission is hereby granted") == len(packages)
