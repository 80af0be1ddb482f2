"""Growth of files or memory in any process is reported. PostgreSQL's pools may grow."""

from dataclasses import replace

import pytest

from tests.faults.long.soak.holdings import (
    MEMORY_MIB,
    OPEN_FILES,
    Holding,
    Holdings,
    grown_files,
    grown_memory,
    table,
)

WORKER = Holding(
    processes=2,
    open_files=80,
    most_open_files=44,
    threads=18,
    memory_mib=106.0,
    most_memory_mib=54.0,
)
CONNECTION = replace(WORKER, processes=25)
BEFORE = {"worker": WORKER, "postgres, a connection": CONNECTION}


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (
            {"worker": replace(WORKER, most_open_files=44 + OPEN_FILES + 1)},
            "worker: 44 → 53 open files, 8 more are allowed",
        ),
        ({"worker": replace(WORKER, processes=3)}, "worker: 2 → 3 processes"),
        (
            {"agent": replace(WORKER, most_open_files=1, most_memory_mib=1.0)},
            "agent: 0 → 2 processes",
        ),
        (
            {"worker": replace(WORKER, most_memory_mib=54.1 + MEMORY_MIB)},
            "worker: 54.0 → 60.1 MiB, 6 more are allowed",
        ),
    ],
)
def test_growth_is_reported(after: Holdings, problem: str) -> None:
    assert [*grown_files(BEFORE, after), *grown_memory(BEFORE, after)] == [problem]


def test_allowed_growth_is_not_reported() -> None:
    after = {
        "worker": replace(
            WORKER, most_open_files=44 + OPEN_FILES, most_memory_mib=54.0 + MEMORY_MIB
        ),
        "postgres, a connection": replace(CONNECTION, processes=34, most_open_files=60),
    }
    assert [*grown_files(BEFORE, after), *grown_memory(BEFORE, after)] == []


def test_the_table_has_a_line_for_each_program() -> None:
    head, *rows = table(
        BEFORE, {"worker": replace(WORKER, most_memory_mib=55.0), "fleet": WORKER}, 1024
    )
    assert head.startswith("program")
    assert [row.split("  ")[0] for row in rows] == ["fleet", "postgres, a connection", "worker"]
    assert rows[-1].endswith(" 1024")
