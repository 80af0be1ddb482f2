"""The store in memory: the second implementation of core.ports.Store.

`evershell agent check` and the tests use it, because it needs no database. The contract suites of
the store (tests/contracts) test both implementations.
"""
