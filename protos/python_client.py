"""The files of the Python client that the protos describe, written by `make gen`."""

import ast
from pathlib import Path

from marked_parts import replaced
from python_calls import Calls, owners
from python_errors import error_classes
from python_results import MODULES, Results
from python_text import CLIENT, formatted
from source import Protos

# The names that callers import from `evershell.client`, by module; None for all public classes.
_EXPORTED: dict[str, list[str] | None] = {
    "_async.caller": ["AsyncPages"],
    "_async.client": ["AsyncClient"],
    "_sync.caller": ["Pages"],
    "_sync.client": ["Client"],
    "answers": ["Answer", "OrganizationEvent", "Page"],
    "errors": None,
    "events": None,
    "types": None,
    "webhooks": None,
}


def files(protos: Protos) -> dict[Path, str]:
    """The texts of the files, by path."""
    errors, package = CLIENT / "errors.py", CLIENT / "__init__.py"
    texts = {errors: replaced(errors.read_text(), error_classes(protos))}
    results = Results(protos)
    texts |= {CLIENT / f"{name}.py": results.text(name) for name in MODULES}
    calls = Calls(protos, results)
    texts |= {
        CLIENT / "_async" / f"{owner or 'plain_calls'}.py": calls.text(owner) for owner in owners()
    }
    texts[package] = replaced(package.read_text(), _exports(texts))
    return {path: formatted(path, text) for path, text in texts.items()}


def _exports(texts: dict[Path, str]) -> str:
    """The imports of the package, and its `__all__`. `texts` has the modules that are written."""
    names: dict[str, list[str]] = {}
    for module, some in _EXPORTED.items():
        path = CLIENT / f"{module}.py"
        names[module] = some or _public(ast.parse(texts.get(path) or path.read_text()))
    imports = [f"from evershell.client.{each} import {', '.join(names[each])}" for each in names]
    everything = sorted(name for each in names.values() for name in each)
    return "\n".join([*imports, "", f"__all__ = {everything!r}", ""])


def _public(module: ast.Module) -> list[str]:
    """The classes of a module, and the alias Event, which is a union of classes."""
    classes = [each.name for each in module.body if isinstance(each, ast.ClassDef)]
    aliases = [
        target.id
        for each in module.body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name) and target.id == "Event"
    ]
    return sorted(name for name in [*classes, *aliases] if not name.startswith("_"))
