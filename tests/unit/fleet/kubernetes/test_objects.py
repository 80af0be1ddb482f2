"""The objects of a workspace, which an API server has to accept."""

import pytest

from evershell.fleet.kubernetes import objects
from evershell.fleet.kubernetes.objects import PodTemplate
from tests.support import world

TEMPLATE = PodTemplate(image="evershell:1", command=["python3"])


@pytest.mark.parametrize(
    ("org_id", "is_label"),
    [
        ("org_01M87BM0P43R0RRYFB6HF29RVY", True),
        ("a", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("acme-", False),
        ("Acme Corp", False),
        ("https://login.acme.example/1", False),
        ("acme\n", False),
    ],
)
def test_the_organization_is_a_label_if_its_id_is_a_valid_value(
    org_id: str, is_label: bool
) -> None:
    workspace = world.workspace(org_id=org_id, epoch=1, run_id="run_1")
    for found in (objects.pod(workspace, TEMPLATE), objects.claim(workspace, TEMPLATE)):
        labels = found["metadata"]["labels"]
        assert labels.get("evershell.ai/org") == (org_id if is_label else None)
        assert labels[objects.WORKSPACE_LABEL] == workspace.id
