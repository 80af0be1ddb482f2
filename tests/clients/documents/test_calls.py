"""docs/calls.md has every call, as the protos declare it."""

import re

from evershell.workspace.v1 import error_pb2, workspace_service_pb2
from google.api import annotations_pb2

from tests.support.stack import ROOT

SLUGS = error_pb2.Error.ErrorCode.DESCRIPTOR.values_by_number
PAGE = (ROOT / "docs" / "calls.md").read_text()
METHODS = PAGE.split("\n## All methods\n")[1].split("\n## ")[0]


def test_the_table_of_calls_matches_the_protos() -> None:
    table = set()
    for row in re.findall(r"^\| (\w+) \| (.*) \| (\d+)[^|]*\|([^|]*)\|$", METHODS, re.MULTILINE):
        for method, path in re.findall(r"([A-Z]+) `([^`?]+)[^`]*`", row[1]):
            table.add((row[0], method, path, int(row[2]), *re.findall(r"`(\w+)`", row[3])))
    bindings = set()
    for rpc in workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].methods:
        options = rpc.GetOptions()
        http = options.Extensions[annotations_pb2.http]
        for rule in (http, *http.additional_bindings):
            verb = rule.WhichOneof("pattern")
            if verb is None:
                continue
            edge = options.Extensions[workspace_service_pb2.edge]
            slugs = [SLUGS[number].name for number in edge.errors]
            bindings.add((rpc.name, verb.upper(), getattr(rule, verb), edge.success_status, *slugs))
    assert table == bindings


def test_the_common_errors_match_the_protos() -> None:
    (sentence,) = re.findall(
        r"^Every call may also answer (.*?), or what", METHODS, re.MULTILINE | re.DOTALL
    )
    service = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
    slugs = {
        SLUGS[number]
        for number in service.GetOptions().Extensions[workspace_service_pb2.every_call].errors
    }
    of_the_service = {
        slug.name for slug in slugs if not slug.GetOptions().Extensions[error_pb2.rule].edge_only
    }
    assert set(re.findall(r"`(\w+)`", sentence)) == of_the_service
