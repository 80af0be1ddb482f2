"""Lists in CHANGELOG.md the names of the API and of settings that the last release lacks."""

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from marked_parts import BEGIN, END, replaced
from source import PACKAGE, Protos

_UNRELEASED = "## [Unreleased]\n"
_PART = f"\n### New names\n\n<!-- {BEGIN} -->\n<!-- {END} -->\n"
_CODES = f"{PACKAGE}.Error.ErrorCode"
_EVENT, _EVENT_TYPES = f"{PACKAGE}.Event", f"{PACKAGE}.EventType.Type"
_LINE_CHARACTERS = 118
_Type = Descriptor | EnumDescriptor


def with_new_names(changelog: str, names: str) -> str:
    """The changelog with `names` in its Unreleased section, which is added if it is missing."""
    if BEGIN not in changelog:
        if not names:
            return changelog
        if _UNRELEASED not in changelog:
            changelog = changelog.replace("\n## [", f"\n{_UNRELEASED}\n## [", 1)
        changelog = changelog.replace(_UNRELEASED, _UNRELEASED + _PART, 1)
    return replaced(changelog, names)


def new_names(
    protos: Protos, released: Protos, settings: Mapping[str, str], released_settings: Iterable[str]
) -> str:
    """An entry for each call, field, value, error, event and setting that the release lacks.

    `settings` maps the name of each setting to its docstring.
    """
    entries = [*_calls(protos, released), *_types(protos, released)]
    entries += [
        (f"The setting [`{name.upper()}`](docs/configuration.md)", text)
        for name, text in settings.items()
        if name not in {*released_settings}
    ]
    return "".join(_line(what, text) for what, text in entries)


def settings_of(folder: Path) -> dict[str, str]:
    """The docstring of each setting of the modules in the folder."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        found |= settings_in(path.read_text())
    return found


def settings_in(module: str) -> dict[str, str]:
    """The fields of the classes of settings in the source of a module, with their docstrings."""
    found = {}
    for each in ast.parse(module).body if "Settings):" in module else ():
        if not isinstance(each, ast.ClassDef):
            continue
        is_settings = any(ast.unparse(base).endswith("Settings") for base in each.bases)
        for field, after in pairwise(each.body if is_settings else []):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[field.target.id] = str(after.value.value)
    return found


def _calls(protos: Protos, released: Protos) -> Iterator[tuple[str, str]]:
    known = released.service.methods_by_name
    for method in protos.service.methods:
        if method.name not in known:
            what = f"The call [{method.name}](docs/calls.md#all-methods)"
            yield what, protos.comment(method.full_name)


def _types(protos: Protos, released: Protos) -> Iterator[tuple[str, str]]:
    """Yields an entry for each new field or value of a type that the release already has."""
    old = _reachable(released)
    for name, found in _reachable(protos).items():
        # An event type has the name of its payload, which is already listed as a field.
        if name == _EVENT_TYPES or name not in old:
            continue
        for member in _members(found):
            if member not in _members(old[name]):
                yield _what(name, member), protos.comment(f"{name}.{member}")


def _what(type_name: str, member: str) -> str:
    if type_name == _CODES:
        return f"The error [`{member}`](docs/errors.md#{member})"
    if type_name == _EVENT:
        return f"The event [`{member}`](docs/events.md)"
    return f"`{member}` of `{type_name.removeprefix(f'{PACKAGE}.')}`"


def _members(found: _Type) -> Sequence[str]:
    """The names of the fields of a message, or of the values of an enum."""
    if isinstance(found, Descriptor):
        return [each.name for each in found.fields]
    return [each.name for each in found.values]


def _reachable(protos: Protos) -> dict[str, _Type]:
    """The messages and enums that calls use, by full name, in the order of the calls."""
    found: dict[str, _Type] = {}
    left: list[_Type] = [
        each
        for method in protos.service.methods
        for each in (method.input_type, method.output_type)
    ]
    while left:
        each = left.pop(0)
        if each.full_name in found or not each.full_name.startswith(PACKAGE):
            continue
        found[each.full_name] = each
        fields = each.fields if isinstance(each, Descriptor) else ()
        left += [inner for field in fields if (inner := field.message_type or field.enum_type)]
    return found


def _line(what: str, comment: str) -> str:
    """An entry with the first sentence of a comment."""
    text = " ".join(comment.split()).split(". ")[0].rstrip(".")
    text = re.sub(r"\]\((?=[\w-]+\.md)", "](docs/", text)
    return (
        textwrap.fill(
            f"- {what}: {text}.",
            _LINE_CHARACTERS,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
    )
