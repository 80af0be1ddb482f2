"""The store in memory: the second implementation of core.ports.Store.

It serves `evershell agent check` and the tests, and needs no database. The contract suites of the
store (tests/contracts) run on it and on PostgreSQL.
"""
