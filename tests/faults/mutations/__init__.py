"""The rules of the contract, each with a defect that breaks it and the tests that find the defect.

`python -m tests.faults.mutations` makes one defect after another in a copy of the checkout, and
runs the tests of the rule there. A defect that survives has no test.
"""
