"""Plays a plan of partitions on a new stack on many hosts, and returns the outcome."""

from pathlib import Path

from tests.faults.long.chaos.plan import Plan
from tests.faults.long.chaos.run import Outcome, play_and_judge
from tests.faults.long.chaos.sightings import allowed_connections
from tests.faults.long.hosts.many_hosts import CONTROLLERS, HOSTS, WORKERS, ManyHosts
from tests.faults.long.hosts.partitions import Partitions
from tests.support.network import network
from tests.support.stack import Workspace


def run(plan: Plan, state_dir: Path) -> Outcome:
    """Starts a stack, plays the plan and stops the stack."""
    with network(HOSTS) as hosts:
        stack = ManyHosts(state_dir, hosts, LOG_LEVEL="INFO")
        try:
            stack.start()
            workspace_ids = [Workspace(stack).id for _ in plan.rounds]
            connections = allowed_connections(len(WORKERS), len(CONTROLLERS))
            return play_and_judge(
                stack, Partitions(stack), plan, workspace_ids, connections, marks_work=True
            )
        finally:
            stack.kill_if_running()
