"""Lists and counts the hand-written files that a change edits.

    python .make/width.py main...BRANCH
    python .make/width.py COMMIT
    python .make/width.py COMMIT --about 'parent_not_running|ParentNotRunning'

Leaves out the files that `make gen` writes (`linguist-generated` in .gitattributes). Also leaves
out a file if only the parts that `make gen` writes have changed (MARKED).
"""

import argparse
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SET = ": linguist-generated: set"
# A part that `make gen` writes, in a file that is otherwise written by hand.
MARKED = re.compile(
    r"^.*\bbegin: written by `make gen`.*?\bend: written by `make gen`", re.M | re.S
)


def git(*arguments: str) -> str:
    """The output of git; empty if git fails, as for a file that a commit does not have."""
    return subprocess.run(
        ["git", *arguments],  # noqa: S607 - the reader's own git
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
    ).stdout


def by_hand(before: str, after: str, about: str | None) -> list[str]:
    """The files that are written by hand and have changed lines that match `about`."""
    only = [f"-G{about}"] if about else []
    names = git("diff", "--name-only", "--no-renames", *only, before, after).splitlines()
    attributes = git("check-attr", "linguist-generated", "--", *names).splitlines()
    written = {each.removesuffix(_SET) for each in attributes if each.endswith(_SET)}
    return [each for each in names if each not in written and _differs(before, after, each)]


def _differs(before: str, after: str, name: str) -> bool:
    texts = [git("show", f"{commit}:{name}") for commit in (before, after)]
    return MARKED.sub("", texts[0]) != MARKED.sub("", texts[1])


def main() -> None:
    """Prints the files and their number."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("change", help="a commit, BEFORE..AFTER, or BASE...BRANCH")
    parser.add_argument("--about", help="only files with changed lines that match this expression")
    arguments = parser.parse_args()
    if "..." in arguments.change:
        base, _, after = arguments.change.partition("...")
        before = git("merge-base", base, after).strip()
    elif ".." in arguments.change:
        before, _, after = arguments.change.partition("..")
    else:
        before, after = f"{arguments.change}^", arguments.change
    names = by_hand(before, after, arguments.about)
    print(*names, f"{len(names)} files", sep="\n")


if __name__ == "__main__":
    main()
