"""The table of attacks is whole: each row has a test, and each test of an attack has a row."""

import ast
from collections import Counter
from pathlib import Path

from tests.faults.long.attacks.attack_table import ROWS

TESTS = Path(__file__).parents[1]
# All tests of these files are attacks, except those that show that the attack is a real one.
ATTACKING = (
    "wire/api/test_forged_credentials.py",
    "wire/api/test_injection.py",
    "contracts/test_store_texts.py",
    "faults/long/attacks/test_agents.py",
    "faults/long/attacks/test_callers.py",
    "faults/long/attacks/test_sandbox.py",
    "stack/long/test_attacks_of_tools.py",
)
CONTROLS = {
    "test_the_keys_of_these_tests_are_good",
    "test_memory_that_processes_share_counts_once",
    "test_what_is_forged_here_is_good_otherwise",
    "test_no_attack_has_forged_a_line_of_a_log",
    "test_the_attackers_tokens_are_good_where_the_key_is_trusted",
    "test_nothing_is_left_of_a_stack_whose_folders_a_tool_has_hidden",
    "test_work_stopped_is_yes_only_if_the_controller_can_see_a_detached_tool",
}


def names_in(path: str) -> set[str]:
    """The names of the tests in a file."""
    return {
        node.name
        for node in ast.parse((TESTS / path).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_each_attack_has_a_test() -> None:
    for row in ROWS:
        path, _, name = row.test.partition("::")
        assert name in names_in(path), row
    groups = Counter(row.group for row in ROWS)
    print(f"{len(ROWS)} attacks in {len({row.test for row in ROWS})} tests: {dict(groups)}")


def test_each_test_of_an_attack_is_in_the_table() -> None:
    named = {row.test for row in ROWS}
    written = {f"{path}::{name}" for path in ATTACKING for name in names_in(path) - CONTROLS}
    assert written - named == set()
