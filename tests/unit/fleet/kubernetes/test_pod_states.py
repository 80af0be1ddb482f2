"""The objects of a workspace, and what operators read when a pod ends or does not start."""

from pathlib import Path
from typing import Any

import pytest

from evershell.core.errors import OperatorError
from evershell.fleet.kubernetes import objects, pod_states
from evershell.fleet.kubernetes.objects import PodSettings, PodTemplate
from tests.support import world
from tests.unit.fleet.kubernetes.scripted import pod, running_status


def terminated(reason: str, message: str = "", **more: int) -> dict[str, Any]:
    state = {"terminated": {"reason": reason, "message": message, **more}}
    return {"phase": "Failed", "containerStatuses": [{"state": state}]}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"state": state}]}


def condition(type_: str, status: str, **more: str) -> dict[str, Any]:
    return {"conditions": [{"type": type_, "status": status, **more}]}


RUNNING = running_status()
# The status of a pod, the explanation for it, and whether the agent is alive.
CASES: list[tuple[dict[str, Any], str, bool]] = [
    (RUNNING, "", True),
    ({"phase": "Pending"}, "", True),
    (waiting("ContainerCreating"), "", True),
    (terminated("Error"), "", False),
    (terminated("OOMKilled"), "its agent ran out of memory (its limit is 64Mi)", False),
    (terminated("OOMKilled", exitCode=5), "", False),
    (terminated("Error", exitCode=137), "its agent was killed by SIGKILL", False),
    (
        terminated("StartError", 'exec: "agent": not found'),
        'its container could not be started: exec: "agent": not found',
        False,
    ),
    (
        {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "The node was low on resource: memory.",
        },
        "its pod was evicted: The node was low on resource: memory.",
        False,
    ),
    (
        {
            "phase": "Failed",
            "reason": "OutOfcpu",
            "message": "Pod Node didn't have enough resource",
        },
        "its node refused the pod: Pod Node didn't have enough resource",
        False,
    ),
    ({"phase": "Failed", "reason": "Shutdown"}, "the node of its pod was shut down", False),
    (
        waiting("ErrImagePull", "not\n  found"),
        "its image cannot be pulled: not found",
        True,
    ),
    (
        waiting("InvalidImageName", "couldn't parse"),
        "its image cannot be pulled: couldn't parse",
        False,
    ),
    (
        waiting("CreateContainerConfigError", 'secret "x" not found'),
        'its container does not start: secret "x" not found',
        True,
    ),
    (
        {
            "phase": "Pending",
            **condition(
                "PodScheduled", "False", reason="Unschedulable", message="0/3 nodes are available"
            ),
        },
        "no node takes its pod: 0/3 nodes are available",
        True,
    ),
    (
        {**RUNNING, **condition("Ready", "False")},
        "the node of its pod does not answer",
        True,
    ),
    (
        {**RUNNING, **condition("DisruptionTarget", "True", reason="EvictionByEvictionAPI")},
        "its pod was evicted, as in the drain of a node",
        True,
    ),
    (
        {**RUNNING, **condition("DisruptionTarget", "True", reason="DeletionByTaintManager")},
        "the node of its pod does not answer, or takes no more pods",
        True,
    ),
]


@pytest.mark.parametrize(("status", "explanation", "is_alive"), CASES)
def test_an_operator_reads_why(status: dict[str, Any], explanation: str, is_alive: bool) -> None:
    found = pod(1, **status)
    found["spec"]["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    assert pod_states.explain(found) == explanation
    assert pod_states.is_alive(found) is is_alive


def test_a_pod_that_others_delete_is_not_alive_and_says_so() -> None:
    found = pod(1, **RUNNING)
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not pod_states.is_alive(found)
    assert "deleted from outside" in pod_states.explain(found)


def test_the_last_line_of_the_log_comes_from_the_status() -> None:
    assert pod_states.last_line(pod(1, **terminated("Error", "one\ntwo\n"))) == "two"
    assert pod_states.last_line(pod(1, **RUNNING)) == ""


def test_a_pod_that_disappears_while_it_runs_has_not_confirmed_its_end() -> None:
    assert not pod_states.has_ended(pod(1, **RUNNING))
    # On an eviction, some versions of the kubelet set the phase before the containers have ended.
    assert not pod_states.has_ended(pod(1, phase="Failed", reason="Evicted"))


def test_a_pod_whose_end_was_reported_or_that_never_started_has_ended() -> None:
    assert pod_states.has_ended(pod(1, **terminated("Error")))
    assert pod_states.has_ended(pod(1, **waiting("ErrImagePull")))
    unscheduled = pod(1, phase="Pending")
    del unscheduled["spec"]["nodeName"]
    assert pod_states.has_ended(unscheduled)


def test_the_end_of_a_pod_is_reported_by_all_its_containers() -> None:
    assert pod_states.end_is_reported(pod(1, **terminated("Error")))
    assert not pod_states.end_is_reported(pod(1, **RUNNING))
    assert not pod_states.end_is_reported(pod(1, **waiting("ErrImagePull")))
    # An evicted pod is `Failed` before its containers have ended.
    assert not pod_states.end_is_reported(pod(1, phase="Failed", reason="Evicted"))
    both = terminated("Error")["containerStatuses"] + RUNNING["containerStatuses"]
    assert not pod_states.end_is_reported(pod(1, containerStatuses=both))


TEMPLATE = PodTemplate(image="evershell:1", command=["python3"])


def template_of(folder: Path, content: str) -> PodTemplate:
    path = folder / "agents.yaml"
    path.write_text(content)
    settings = PodSettings(pod_image="evershell:1", pod_template_file=path)
    return PodTemplate.read(settings, ["python3"])


def test_a_pod_and_its_volume_have_what_the_template_says(tmp_path: Path) -> None:
    workspace = world.workspace(epoch=1, run_id="run_1")
    assert template_of(tmp_path, "") == TEMPLATE
    template = template_of(
        tmp_path,
        "resources: {limits: {memory: 4Gi, cpu: null}}\n"
        "pod: {imagePullSecrets: [{name: registry}], nodeSelector: {pool: agents}}\n"
        "volume: {storageClassName: fast}\n",
    )
    plain, spec = (objects.pod(workspace, each)["spec"] for each in (TEMPLATE, template))
    assert spec["containers"][0].pop("resources") == {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"memory": "4Gi"},
    }
    assert plain["containers"][0].pop("resources")["limits"] == {"cpu": "1", "memory": "2Gi"}
    more = {"imagePullSecrets": [{"name": "registry"}], "nodeSelector": {"pool": "agents"}}
    assert spec == plain | more
    assert objects.claim(workspace, template)["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "1Gi"}},
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("pod: {hostPID: true, securityContext: {}}", "may not have securityContext"),
        ("image: another", "multiple values"),
        ("limits: {}", "limits"),
        ("resources: [", "POD_TEMPLATE_FILE"),
        ("text", "POD_TEMPLATE_FILE"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(
    content: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(OperatorError, match=problem):
        template_of(tmp_path, content)


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
