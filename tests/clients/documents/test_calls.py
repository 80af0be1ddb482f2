"""docs/calls.md names the errors of every call, as the protos declare them."""

import re

from evershell.workspace.v1 import error_pb2, workspace_service_pb2

from tests.support.stack import ROOT

SLUGS = error_pb2.Error.ErrorCode.DESCRIPTOR.values_by_number
PAGE = (ROOT / "docs" / "calls.md").read_text()
METHODS = PAGE.split("\n## All methods\n")[1].split("\n## ")[0]


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
