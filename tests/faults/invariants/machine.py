"""The rules of the state machine: calls, replies, faults and passing time, in any order."""

import hypothesis.strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from evershell.core.task import TaskLimits
from tests.faults.invariants.ending import end_all
from tests.faults.invariants.invariants import INVARIANTS
from tests.faults.invariants.product import CALLERS, STEP_SECONDS
from tests.faults.invariants.spy_store import Hiccup
from tests.faults.invariants.steps import Steps
from tests.faults.invariants.trouble import Fault, Link
from tests.faults.invariants.view import View
from tests.faults.invariants.wire import Network

# The network is good in a third of the cases, so that a run progresses.
NETWORKS = st.sampled_from([Network.GOOD, Network.GOOD, Network.LOST, Network.LATE, *Network])
# The index of the agent that a rule affects, among the agents that qualify. It is mostly the last.
WHICH = st.sampled_from([-1, -1, -1, -2])
# An iteration has five tokens, which cost five nano-dollars. Each limit of duration is reached
# between two scans of the controller.
LIMITS = [
    TaskLimits(),
    TaskLimits(),
    TaskLimits(max_total_tokens=8),
    TaskLimits(max_cost_nanos=11),
    TaskLimits(max_duration_seconds=3.75),
    TaskLimits(max_duration_seconds=3.75),
    TaskLimits(max_duration_seconds=1.75, max_total_tokens=5, force_after_seconds=1.0),
]


class CancellationMachine(Steps):
    """One workspace with its agents and callers.

    After every rule, the machine waits until no asyncio task can continue, and checks every
    invariant.
    """

    @initialize(limits=st.sampled_from(LIMITS))
    def begin_first(self, limits: TaskLimits) -> None:
        self.world.run(self._begin(limits=limits))

    @precondition(lambda self: not self.has_open_task or self.may_be_trouble)
    @rule(
        comes_up=st.sampled_from([True, True, True, False]),
        is_heard=st.sampled_from([True, True, False]),
        network=NETWORKS,
        limits=st.sampled_from(LIMITS),
    )
    def begin(self, comes_up: bool, is_heard: bool, network: Network, limits: TaskLimits) -> None:
        """Submits a task. The workspace may be down, and the agent's requests may get lost."""
        begun = self._begin(comes_up=comes_up, is_heard=is_heard, network=network, limits=limits)
        self.world.run(begun)

    @precondition(lambda self: self.has_open_task)
    @rule(
        by=st.sampled_from(sorted(CALLERS)),
        network=NETWORKS,
        force_after_seconds=st.sampled_from([None, None, 0.0, 2.0, 5.0]),
        wait_seconds=st.sampled_from([None, 0.0, 1.0, 10.0, 30.0]),
        times=st.sampled_from([1, 1, 3]),
        reason=st.sampled_from(["", "enough"]),
        hiccup=st.sampled_from([None, None, None, None, *Hiccup]),
    )
    def cancel(
        self,
        by: str,
        network: Network,
        force_after_seconds: float | None,
        wait_seconds: float | None,
        times: int,
        reason: str,
        hiccup: Hiccup | None,
    ) -> None:
        """A caller cancels the running task with `times` concurrent calls."""
        self.world.wire.network = network
        if hiccup is not None:
            self.world.store.hiccups.appendleft(hiccup)
        call = self.world.cancel(
            CALLERS[by],
            reason=reason,
            wait_seconds=wait_seconds,
            force_after_seconds=force_after_seconds,
            times=times,
        )
        self.world.run(call)

    @precondition(lambda self: self.has_open_task or self.may_be_trouble)
    @rule(
        by=st.sampled_from(sorted(CALLERS)),
        holds=st.sampled_from([False, False, True]),
        force_after_seconds=st.sampled_from([None, None, 2.0]),
        hiccup=st.sampled_from([None, None, None, None, *Hiccup]),
    )
    def cancel_all(
        self, by: str, holds: bool, force_after_seconds: float | None, hiccup: Hiccup | None
    ) -> None:
        """A caller cancels all tasks, with or without a hold of the organization."""
        if hiccup is not None:
            self.world.store.hiccups.appendleft(hiccup)
        call = self.world.cancel_all(
            CALLERS[by], holds=holds, force_after_seconds=force_after_seconds
        )
        self.world.run(call)

    @precondition(lambda self: self.world.may_be_held)
    @rule()
    def release(self) -> None:
        self.world.run(self.world.release())

    @precondition(lambda self: self.is_deadline_ahead)
    @rule(by=st.sampled_from(sorted(CALLERS)), network=NETWORKS)
    def force_sooner(self, by: str, network: Network) -> None:
        """A caller asks for an earlier force deadline."""
        self.world.wire.network = network
        self.world.run(self.world.cancel(CALLERS[by], force_after_seconds=STEP_SECONDS))

    @precondition(lambda self: self.world.task_ids and self.may_be_trouble)
    @rule(
        which=st.sampled_from(["first", "last", "unknown", "none"]),
        wait_seconds=st.sampled_from([None, 10.0]),
    )
    def cancel_another(self, which: str, wait_seconds: float | None) -> None:
        """A caller cancels a task that may have ended or not exist, or names no task.

        If the caller names no task, possibly no task runs.
        """
        self._troubles += 1
        task_ids = self.world.task_ids
        named = {
            "first": task_ids[0],
            "last": task_ids[-1],
            "unknown": "task_unknown",
            "none": None,
        }[which]
        self.world.wire.network = Network.GOOD
        self.world.run(self.world.cancel(CALLERS["user"], task_id=named, wait_seconds=wait_seconds))

    @precondition(lambda self: any(agent.gates.is_model_called for agent in self.awake()))
    @rule(
        reply=st.sampled_from(["tool", "tool", "final", "final", "final with a tool", "fails"]),
        which=WHICH,
    )
    def model_replies(self, reply: str, which: int) -> None:
        agent = self._one_of(
            [agent for agent in self.awake() if agent.gates.is_model_called], which
        )
        if reply == "fails":
            self._do(agent.gates.fail)
        else:
            self._do(lambda: agent.gates.reply(final="final" in reply, tool="tool" in reply))

    @precondition(lambda self: any(agent.gates.is_model_called for agent in self.awake()))
    @rule(
        reply=st.sampled_from(["final", "final", "fails", "tool"]),
        network=st.sampled_from([Network.LOST, Network.LATE]),
    )
    def model_replies_before_the_signal_comes(self, reply: str, network: Network) -> None:
        """The task may end, and the next task may begin, before the signal reaches the agent."""
        self.world.wire.network = network
        self.world.run(self.world.cancel(CALLERS["user"]))
        self.model_replies(reply, -1)
        if not self.has_open_task:
            self.world.run(self._begin())

    @precondition(lambda self: any(agent.gates.is_tool_called for agent in self.awake()))
    @rule(which=WHICH)
    def tool_ends(self, which: int) -> None:
        self._do(
            self._one_of(
                [agent for agent in self.awake() if agent.gates.is_tool_called], which
            ).gates.end_tool
        )

    @precondition(lambda self: self.may_time_pass)
    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 5.0, 15.0]))
    def time_passes(self, seconds: float) -> None:
        self._passings += 1
        self.world.run(self.world.advance(seconds))

    @precondition(lambda self: self.there() and self.may_be_trouble)
    @rule(
        what=st.sampled_from(
            ["crash", "crash out of reach", "freeze", "requests lost", "replies lost"]
        ),
        which=WHICH,
    )
    def agent_in_trouble(self, what: str, which: int) -> None:
        self._troubles += 1
        agent = self._one_of(self.there(), which)
        if "crash" in what:
            self.world.pods.are_in_reach &= what == "crash"
            self.world.run(agent.crash())
        elif what == "freeze":
            self._do(agent.freeze)
        else:
            self._do(
                lambda: agent.set_link(
                    Link.REQUESTS_LOST if what == "requests lost" else Link.REPLIES_LOST
                )
            )

    # This rule does not require `may_be_trouble`, because few tasks get close to their limit, and
    # each of them only once.
    @precondition(lambda self: self.limit_ahead is not None)
    @rule(what=st.sampled_from(["crash", "crash out of reach", "no controller", "no controller"]))
    def limit_is_reached_unseen(self, what: str) -> None:
        """The task reaches its limit of duration as its agent dies, or while no controller runs."""
        self._troubles += 1
        if what == "no controller":
            self.world.run(self._reach_limit_without_controller())
        else:
            self.world.pods.are_in_reach &= what == "crash"
            self.world.run(self._die_at_limit())

    @precondition(lambda self: self.there() and self.may_be_trouble)
    @rule(fault=st.sampled_from(Fault), which=WHICH)
    def agent_is_defective(self, fault: Fault, which: int) -> None:
        """Makes an agent defective: it still renews its lease, but does not work correctly.

        The defect lasts until the agent's process ends.
        """
        self._troubles += 1
        self._one_of(self.there(), which).fault = fault

    @precondition(
        lambda self: any(agent.is_frozen or agent.link is not Link.GOOD for agent in self.there())
    )
    @rule()
    def agents_are_well(self) -> None:
        """Thaws every agent and repairs the links."""

        def mend() -> None:
            for agent in self.there():
                agent.thaw()
                agent.set_link(Link.GOOD)

        self._do(mend)

    @precondition(lambda self: self.may_be_trouble)
    @rule(hiccup=st.sampled_from(Hiccup))
    def database_fails_once(self, hiccup: Hiccup) -> None:
        self._troubles += 1
        self.world.store.hiccups.append(hiccup)

    @precondition(lambda self: self.may_be_trouble)
    @rule(
        what=st.sampled_from(["looks", "redelivers", "ends", "cannot end pods", "can end pods"]),
        network=NETWORKS,
    )
    def controller(self, what: str, network: Network) -> None:
        self._troubles += 1
        self.world.wire.network = network
        match what:
            case "looks":
                self.world.run(self._scan())
            case "redelivers":
                self.world.run(self._redeliver())
            case "ends":
                self.world.run(self.world.stop_leading())
            case _:
                self.world.pods.are_in_reach = what == "can end pods"

    @precondition(lambda self: self.may_be_trouble)
    @rule(
        what=st.sampled_from(["stop", "stop", "resume", "fence", "cut off", "restart"]),
        network=NETWORKS,
    )
    def upheaval(self, what: str, network: Network) -> None:
        """The workspace stops or resumes, its agent is fenced or cut off, or the stack restarts."""
        self._troubles += 1
        self.world.wire.network = network
        steps = {
            "stop": self.world.stop,
            "resume": self._come_up,
            "fence": self._fence,
            "cut off": self._cut_off,
            "restart": self.world.restart_stack,
        }
        self.world.run(steps[what]())

    @precondition(lambda self: not self.has_open_task)
    @rule(comes_up=st.booleans(), limits=st.sampled_from(LIMITS))
    def wake(self, comes_up: bool, limits: TaskLimits) -> None:
        """The workspace stays idle until it is suspended, then gets a task."""
        self.world.run(self._idle())
        self.world.run(self._begin(comes_up=comes_up, limits=limits))

    @precondition(lambda self: any(not call.runner.done() for call in self.world.record.calls))
    @rule(what=st.sampled_from(["goes away", "drain"]))
    def while_a_caller_waits(self, what: str) -> None:
        """While a call waits, its caller disconnects or the server drains."""
        if what == "drain":
            self._do(self.world.drain)
            return
        call = next(call for call in self.world.record.calls if not call.runner.done())
        call.has_left = True
        self._do(call.runner.cancel)

    @invariant()
    def all_invariants(self) -> None:
        self._steps += 1
        view = self.world.run(View.of(self.world))
        for check in INVARIANTS:
            check(view)

    def teardown(self) -> None:
        """Repairs every fault, and checks that each accepted cancellation is fulfilled."""
        try:
            self.end()
            self.all_invariants()
        finally:
            self.world.close()

    def end(self) -> None:
        end_all(self.world)
