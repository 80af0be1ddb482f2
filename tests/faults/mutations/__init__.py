"""The rules of the contract, each with mutants that break it and the tests that must fail then.

`python -m tests.faults.mutations` applies one mutant after another to a copy of the checkout, and
runs the tests of the rule there. If a mutant survives, no test of its rule finds the defect.
"""
