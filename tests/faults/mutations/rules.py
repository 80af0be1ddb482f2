"""The rules of the contract. Each rule has a name, its tests and its mutants.

The rules about cancelling are in cancelling.py, the rules about healthy programs in healthy.py,
about trees in trees.py, about suspension in suspending.py, about webhooks in delivering.py and
about removal in removing.py. All other rules are in calling.py.
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
