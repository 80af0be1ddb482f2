"""A node that does not answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.deploy.long.node import node
from tests.deploy.long.node.endings import assert_truth, busy
from tests.deploy.long.node.pods import await_condition, await_no_pods, pods, running_pod
from tests.deploy.long.node.stacks import NodeWorkspace, running_stack
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def impatient_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that soon gives up on agents and pods that do not answer."""
    node.require_shell()
    with running_stack(
        tmp_path_factory.mktemp("silent"),
        end_seconds=5,
        LEASE_SECONDS="15",
    ) as running:
        yield running


def test_a_silent_node(impatient_stack: Stack) -> None:
    """The cluster cannot tell what runs on the node, but running agents report to the workers."""
    with ThreadPoolExecutor() as pool:
        workspaces = pool.map(lambda _: NodeWorkspace(impatient_stack), range(4))
    failed, cancelled, finishing, stopped = workspaces
    tasks = {each.id: busy(each, is_cancelled=False) for each in (failed, cancelled)}
    # Each iteration of this task ends by itself, after 5 s.
    tasks[finishing.id] = finishing.submit(*["sleep 5"] * 90)
    finishing.await_phase(tasks[finishing.id], "tool_call")
    cancelled.cancel(reason="enough")
    lost = [running_pod(each) for each in (failed, cancelled)]
    with node.silent_kubelet():
        # Waits until the cluster has noticed that the kubelet is silent.
        await_condition("condition=Ready=False", failed, cancelled)
        with node.frozen(*lost):
            impatient_stack.rest().call("POST", f"{stopped.path}/stop")
            assert finishing.cancel(reason="enough")["outcome"] == "accepted"
            end = finishing.await_end(tasks[finishing.id])
            assert (end["status"], end["work_stopped"]) == ("cancelled", "yes")
            assert finishing.get()["status"] == "idle"
            reason = (
                "its agent did not renew its lease in time: the node of its pod does not answer"
            )
            for each in (failed, cancelled):
                assert_truth(each, tasks[each.id], reason, "unknown")
            stopped.await_status("stopped")
        # The pod objects still exist, but do not show what runs on the node.
        assert all(pods(each) for each in (failed, cancelled, stopped))
    # The kubelet runs again and ends the pods, which takes time on a loaded machine.
    await_no_pods(failed, cancelled, stopped)
