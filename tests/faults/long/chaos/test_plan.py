"""A plan is determined by its seed, and has faults and rounds of every kind."""

from itertools import pairwise

from tests.faults.long.chaos.drawing import _WEIGHTS, draw
from tests.faults.long.chaos.plan import Plan, Stopped


def pairs(plan: Plan) -> set[tuple[str, str]]:
    return {(fault.kind, fault.target) for fault in plan.faults}


def test_the_same_seed_gives_the_same_plan() -> None:
    assert draw(7, 60, 20) == draw(7, 60, 20)
    assert draw(7, 60, 20) != draw(8, 60, 20)


def test_faults_of_every_kind_occur_within_the_time_and_end_soon() -> None:
    plans = [draw(seed, 60, 2) for seed in range(20)]
    assert set.union(*(pairs(plan) for plan in plans)) == set(_WEIGHTS)
    for plan in plans:
        assert len(plan.faults) > 30
        assert [fault.at_seconds for fault in plan.faults] == sorted(
            fault.at_seconds for fault in plan.faults
        )
        assert all(
            1 <= fault.at_seconds <= 59 and 0.2 <= fault.seconds <= 4 and fault.index < 2
            for fault in plan.faults
        )
        assert {fault.kind for fault in plan.faults} == {kind for kind, _ in _WEIGHTS}


def test_rounds_are_of_every_kind_and_outlast_the_run() -> None:
    plan = draw(1, 60, 20)
    rounds = [each for of_workspace in plan.rounds for each in of_workspace]
    cancels = [cancel for each in rounds for cancel in each.cancels]
    assert len(plan.rounds) == 20
    assert all(len(of_workspace) == 450 for of_workspace in plan.rounds)
    assert {len(each.cancels) for each in rounds} == {0, 1, 2, 3, 4, 5}
    assert {each.agent_stopped for each in rounds} == set(Stopped)
    assert {each.stop_after_seconds is None for each in rounds} == {True, False}
    limits = {
        (each.limit_seconds is None, each.limit_force_after_seconds is None) for each in rounds
    }
    assert limits == {(True, True), (False, True), (False, False)}
    assert {cancel.names_task for cancel in cancels} == {True, False}
    assert {cancel.wait_seconds for cancel in cancels} == {None, 0.2, 2.0}
    assert {cancel.force_after_seconds is None for cancel in cancels} == {True, False}
    assert {cancel.hangs_up_seconds is None for cancel in cancels} == {True, False}
    assert any(
        one.after_seconds == other.after_seconds
        for each in rounds
        for one, other in pairwise(each.cancels)
    )


def test_emergencies_are_of_every_kind_and_follow_one_another() -> None:
    emergencies = [each for seed in range(9) for each in draw(seed, 60, 2).emergencies]
    kinds = {(each.hold_seconds is not None, each.cancels) for each in emergencies}
    assert kinds == {(False, False), (True, False), (True, True)}
    for one, other in pairwise(draw(1, 60, 2).emergencies):
        assert one.at_seconds + (one.hold_seconds or 0) < other.at_seconds < 60
