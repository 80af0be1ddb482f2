"""The rules of the contract, in its order. Each row: the rule, its tests, its mutants.

The mutants of the rules about cancelling are in cancelling.py, those of the rules about webhooks in
delivering.py, the others in calling.py.
"""

from tests.faults.mutations.calling import CALLING
from tests.faults.mutations.cancelling import CANCELLING
from tests.faults.mutations.delivering import DELIVERING
from tests.faults.mutations.mutants import Rule

RULES: tuple[Rule, ...] = (*CALLING, *CANCELLING, *DELIVERING)
