"""Writes the generated files of deploy/chart, and renders the chart to deploy/kustomize.

`make gen` runs it. --check compares instead of writing. --without-manifests leaves out
deploy/kustomize, which needs Helm.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pages import INTERNAL

from evershell.app.settings import Settings
from evershell.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "chart"
KUSTOMIZE = ROOT / "deploy" / "kustomize"
# Settings that values.yaml cannot set, because Secrets contain them or the templates fix the ports.
OWN = {
    *("DATABASE_URL", "DATABASE_SESSION_URL", "MIGRATION_DATABASE_URL", "OPENAI_API_KEY"),
    *("REST_PORT", "GRPC_PORT", "SERVER_PORT"),
}
# Turns off the hook of the migration, because only Helm runs hooks.
VALUES = {"migrate": {"hook": False}}
HEADER = "# Written by `make gen` from deploy/chart. Do not edit.\n"


def chart_yaml() -> str:
    """Chart.yaml with the version of the distribution."""
    text = (CHART / "Chart.yaml").read_text()
    return re.sub(r"(?m)^(version|appVersion): .*$", rf"\1: {VERSION}", text)


def schema() -> str:
    """values.schema.json with the settings."""
    templates = "".join(each.read_text() for each in (CHART / "templates").iterdir())
    own = OWN | set(re.findall(r"(?m)(?:^|\{name: )([A-Z_]+)[:,] ", templates))
    document = json.loads((CHART / "values.schema.json").read_text())
    properties = Settings.model_json_schema()["properties"]
    document["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        # Settings that the SDK of OpenTelemetry reads itself.
        "patternProperties": {"^OTEL_": {"type": "string"}},
        "properties": {
            name.upper(): _property(each)
            for name, each in properties.items()
            if name not in INTERNAL and name.upper() not in own
        },
    }
    return _in_lines(document) + "\n"


def _property(found: dict[str, Any]) -> dict[str, Any]:
    # A setting with `anyOf` is an optional path.
    if "anyOf" in found:
        return {"type": "string"}
    limits = ("type", "enum", "minimum", "exclusiveMinimum", "maximum")
    return {name: found[name] for name in limits if name in found}


def _in_lines(value: Any, indent: str = "") -> str:
    """Formats JSON: an object that fits on one line is on one line."""
    inline = json.dumps(value)
    if not isinstance(value, dict) or len(indent + inline) <= 98:
        return inline
    inner = indent + "  "
    entries = (f"{inner}{json.dumps(key)}: {_in_lines(each, inner)}" for key, each in value.items())
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def manifests() -> dict[Path, str]:
    """The files of deploy/kustomize: the objects, and the settings for its ConfigMap generator."""
    # Imported here, because only `make gen` and the long tests install this package.
    from helm_python import Chart

    with Chart.load(CHART) as chart:
        rendered = chart.render(VALUES, name="evershell", namespace="evershell")
    objects, settings = [], ""
    for path, text in sorted(rendered.items()):
        name = Path(path).name
        lines = (line.rstrip() for line in text.splitlines())
        content = "\n".join(line for line in lines if line) + "\n"
        if name == "settings.yaml":
            data = yaml.safe_load(text)["data"]
            settings = "".join(f"{each}={value}\n" for each, value in sorted(data.items()))
        elif name.endswith(".yaml") and name != "test.yaml" and any(yaml.safe_load_all(text)):
            objects.append(content)
    return {
        KUSTOMIZE / "objects.yaml": HEADER + "---\n".join(objects),
        KUSTOMIZE / "settings.env": HEADER + settings,
    }


def main() -> None:
    """Writes the files. With --check, exits with 1 if one has drifted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; compare")
    parser.add_argument("--without-manifests", action="store_true")
    options = parser.parse_args()
    # The manifests are rendered from the other files, so the other files must be written first.
    steps = [lambda: {CHART / "Chart.yaml": chart_yaml(), CHART / "values.schema.json": schema()}]
    if not options.without_manifests:
        steps.append(manifests)
    for step in steps:
        for path, text in step().items():
            if not options.check:
                path.write_text(text)
            elif not path.exists() or path.read_text() != text:
                sys.exit(f"{path.relative_to(ROOT)} has drifted; run `make gen`")


if __name__ == "__main__":
    main()
