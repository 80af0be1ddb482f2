"""Tests the invariants with a few random runs; long/ has many."""

from tests.faults.invariants.runs import (
    run_deletions_in_memory,
    run_deletions_on_postgres,
    run_in_memory,
    run_on_postgres,
    run_trees,
)


def test_invariants_hold_in_memory() -> None:
    run_in_memory(20)


def test_invariants_hold_on_postgres(database_url: str) -> None:
    run_on_postgres(database_url, 0, examples=3)


def test_invariants_hold_with_deletions_in_memory() -> None:
    run_deletions_in_memory(10)


def test_invariants_hold_with_deletions_on_postgres(database_url: str) -> None:
    run_deletions_on_postgres(database_url, 0, examples=2)


def test_trees_in_memory() -> None:
    run_trees(None, 40)


def test_trees_on_postgres(database_url: str) -> None:
    run_trees(database_url, 10)
