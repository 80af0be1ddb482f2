"""Reads the models, and runs Spin on them."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = Path(__file__).parent / "models"
# The names of the models, in the order of docs/model.md.
NAMES = ("cancel", "force", "agent", "controller", "database", "trees", "holds", "lifecycle")
# The time limit of one search. The longest search takes less than a second.
_LIMIT_SECONDS = 120
_COMPILE = ("gcc", "-O0", "-w", "-DNFAIR=3", "-o", "pan", "pan.c")
_PROPERTY = re.compile(r"/\* ([^*]+?) \*/\nltl (\w+)\s+\{ (.+?) \}\n", re.DOTALL)
# The comment that names the functions for which a transition stands: `/* path: name, name */`.
_REFERENCE = re.compile(r"/\* (\S+/\S+): ([\w, ]+?) \*/")


@dataclass(frozen=True)
class Property:
    """A property of a model."""

    name: str
    # What the property says, in one sentence.
    sentence: str
    # Whether the property says that something happens eventually. If so, scheduling must be fair.
    is_liveness: bool


@dataclass(frozen=True)
class Model:
    """A model in Promela."""

    name: str
    text: str

    @property
    def path(self) -> str:
        """The path of the model in the repository."""
        return str((_FOLDER / f"{self.name}.pml").relative_to(ROOT))

    @property
    def head(self) -> list[str]:
        """The paragraphs of the model's first comment: what the model is, covers and leaves out."""
        comment = self.text[2 : self.text.index("*/")]
        plain = re.sub(r"^ \* ?", "", comment, flags=re.MULTILINE)
        return [" ".join(each.split()) for each in plain.split("\n\n") if each.strip()]

    @property
    def properties(self) -> list[Property]:
        """The properties of the model, in their order."""
        return [
            Property(name, " ".join(sentence.split()), "<>" in formula)
            for sentence, name, formula in _PROPERTY.findall(self.text)
        ]

    @property
    def references(self) -> set[tuple[str, str]]:
        """The functions that the transitions stand for, each as a path and a name."""
        return {
            (path, name)
            for path, names in _REFERENCE.findall(self.text)
            for name in names.split(", ")
        }

    def with_replaced(self, text: str, replacement: str) -> "Model":
        """Returns a mutation of the model. Raises ValueError unless `text` occurs exactly once."""
        if self.text.count(text) != 1:
            raise ValueError(f"{self.path} does not have this text exactly once: {text}")
        return Model(self.name, self.text.replace(text, replacement))


def model(name: str) -> Model:
    """Reads the model with this name."""
    return Model(name, (_FOLDER / f"{name}.pml").read_text())


@dataclass(frozen=True)
class Verdict:
    """The result of a complete search."""

    holds: bool
    states: int


class Checker:
    """The search program of a model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, wanted: Property) -> Verdict:
        """Searches for a run that breaks the property.

        Raises AssertionError if the search fails.
        """
        fair = ("-f",) if wanted.is_liveness else ()
        # -w20: a small hash table, since the models are small.
        output = _run(self._folder, "./pan", "-m200000", "-w20", "-a", *fair, "-N", wanted.name)
        errors = re.search(r"errors: (\d+)", output)
        states = re.search(r"(\d+) states, stored", output)
        holds = errors is not None and errors[1] == "0"
        is_incomplete = holds and ("not completed" in output or "depth too small" in output)
        assert errors and states and not is_incomplete, output
        return Verdict(holds, int(states[1]))


@contextmanager
def compiled(checked: Model) -> Iterator[Checker]:
    """Compiles the search program of a model. Raises AssertionError if Spin refuses the model."""
    with tempfile.TemporaryDirectory(prefix="spec-") as name:
        folder = Path(name)
        (folder / "model.pml").write_text(checked.text)
        _run(folder, "spin", "-a", "model.pml")
        _run(folder, *_COMPILE)
        yield Checker(folder)


def missing_program() -> str | None:
    """Returns the first program that is not installed; None if all are."""
    return next((each for each in ("spin", "gcc") if shutil.which(each) is None), None)


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
