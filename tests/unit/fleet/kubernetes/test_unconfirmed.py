"""Pods that disappear before their kubelet has confirmed their end."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from evershell.core.workspace import Workspace
from evershell.fleet.kubernetes.kubernetes_pods import KubernetesPods
from evershell.fleet.kubernetes.objects import Object, PodTemplate
from tests.support import world
from tests.support.small_agent import spec_for
from tests.unit.fleet.kubernetes.scripted import Script, failure, pod, running_status, scripted


@pytest.fixture
async def pods() -> AsyncIterator[KubernetesPods]:
    """The backend of a cluster in which every pod is gone."""
    async with scripted(Script(failure(404))) as api:
        template = PodTemplate(image="example.com/agent:1", command=["agent"])
        yield KubernetesPods(api, template, spec_for, run_id="run", start_seconds=1, end_seconds=1)


def workspace(epoch: int) -> Workspace:
    return replace(world.workspace(epoch=epoch), id="ws_1")


def running(epoch: int) -> Object:
    return pod(epoch, f"agent-ws-1-{epoch}", f"u{epoch}", **running_status())


def remove_by_force(pods: KubernetesPods, epoch: int) -> None:
    pods._pods.put_own(running(epoch))
    pods._pods.remove(running(epoch))


async def test_an_end_that_nobody_confirmed_stays_unknown(pods: KubernetesPods) -> None:
    remove_by_force(pods, 1)
    assert await pods.end(workspace(1), 0) is False
    assert await pods.end(workspace(1), 0) is False


async def test_the_ends_of_later_epochs_are_known_again(pods: KubernetesPods) -> None:
    remove_by_force(pods, 1)
    pods._pods.put_own(running(2))
    status = {"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {}}}]}
    ended = pod(3, "agent-ws-1-2", "u2", **status)
    pods._pods.put_own(ended)
    pods._pods.remove(ended)
    assert await pods.end(workspace(2), 0) is True


async def test_the_pod_of_an_earlier_epoch_hides_nothing(pods: KubernetesPods) -> None:
    remove_by_force(pods, 2)
    pods._pods.put_own(running(1))
    pods._pods.remove(running(1))
    assert await pods.end(workspace(2), 0) is False
