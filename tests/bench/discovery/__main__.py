"""How Envoy finds workers that come and go: by the DNS, as the service does, and by EDS.

    python -m tests.bench.discovery [--rounds N] [VARIANT …]

Runs a stack whose edge and agents find two workers by a name, and an Envoy with the service's own
configuration, which finds them by the name too, or by EDS from a file. In each round, both workers
are replaced as a Deployment does it, while callers cancel over REST and gRPC. A worker that leaves
loses the name, gets the status DRAINING in the file, and gets SIGTERM after the pause of its
variant. With a cache, the DNS has cached its answer just before, which is the worst case.

The variants run in turn, so that all see the same load of the machine. Prints one JSON object a
row: name, unit, runs, median, min, max. The first object has the machine and its load before and
after. Needs root, for a DNS server of its own.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench import environment, processes
from tests.bench.discovery import roll_out
from tests.bench.discovery.load import CALLS_PER_SECOND
from tests.bench.discovery.roll_out import Variant, say
from tests.bench.figures import Row, Summary
from tests.support.named_workers import NamedWorkers
from tests.support.stack import ROOT

# As `cache 30` of CoreDNS.
_CACHED = 30.0
# As in deploy/base.
_PRE_STOP = 35.0
_SHORT_PRE_STOP = 5.0
# From a change until a program that watches the cluster has told Envoy.
_LAG = 2.0
VARIANTS = (
    Variant("dns", _PRE_STOP, 0),
    Variant("dns-cached", _PRE_STOP, _CACHED),
    Variant("eds", 0, _CACHED, eds=True),
    # The effect of a late program, of the pause, and of the cache.
    Variant("eds-late", 0, _CACHED, eds=True, lag_seconds=_LAG),
    Variant("eds-late-short-pause", _SHORT_PRE_STOP, _CACHED, eds=True, lag_seconds=_LAG),
    Variant("dns-short-pause", _SHORT_PRE_STOP, 0),
    Variant("dns-cached-no-pause", 0, _CACHED),
)
_COUNTED = ("calls", "agents")


def row(variant: str, figure: str, values: list[float]) -> dict[str, Any]:
    """A row of the output."""
    first_word = figure.split()[0]
    unit = first_word if first_word in _COUNTED else "s"
    made = Row(name=f"{variant}: {figure}", unit=unit, value=lambda _: 0.0)
    return Summary(made, values).as_json()


def run(variants: list[Variant], rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Measures every variant in every round. Returns the values by variant and figure."""
    values: dict[str, dict[str, list[float]]] = {
        variant.name: defaultdict(list) for variant in variants
    }
    with ExitStack() as resources:
        workers = NamedWorkers(folder, resources)
        workers.await_found(workers.start_worker())
        workers.start_worker()
        workers.end_first_worker()
        for number in range(1, rounds + 1):
            for variant in variants:
                place = folder / f"{variant.name}-{number}"
                place.mkdir()
                measured = roll_out.measure(workers, variant, place)
                say(f"round {number}, {variant.name}: {json.dumps(measured)}")
                for figure, found in measured.items():
                    values[variant.name][figure] += found
    return values


def main() -> None:
    """Measures and prints the rows."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(names))
    options = parser.parse_args()
    if unknown := set(options.variants) - set(names):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(names)}")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        parser.error("only root can give programs a DNS server of their own")
    variants = [each for each in VARIANTS if each.name in (options.variants or names)]
    before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        values = run(variants, options.rounds, Path(folder))
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": before,
        "load_after": os.getloadavg(),
        "calls_per_second": CALLS_PER_SECOND,
        "commit": environment.commit(ROOT),
    }
    rows = [
        row(variant, figure, found)
        for variant, each in values.items()
        for figure, found in each.items()
    ]
    for each in (machine, *rows):
        sys.stdout.write(json.dumps(each) + "\n")


if __name__ == "__main__":
    main()
