"""The rules of the contract, in its order. Each row: the rule, its tests, its mutants.

The mutants of the rules about cancelling are in cancelling.py, those about what is healthy in
healthy.py, those about trees in trees.py, those about suspension in suspending.py, those about
webhooks in delivering.py, those about retention in removing.py, the others in calling.py.
"""

from tests.faults.mutations.calling import CALLING
from tests.faults.mutations.cancelling import CANCELLING
from tests.faults.mutations.delivering import DELIVERING
from tests.faults.mutations.healthy import HEALTHY
from tests.faults.mutations.mutants import Rule
from tests.faults.mutations.removing import REMOVING
from tests.faults.mutations.suspending import SUSPENDING
from tests.faults.mutations.trees import TREES

RULES: tuple[Rule, ...] = (
    *CALLING,
    *CANCELLING,
    *HEALTHY,
    *TREES,
    *SUSPENDING,
    *DELIVERING,
    *REMOVING,
)
