"""Models of the protocol, which Spin explores completely, and mutations of them.

`make spec` runs everything and prints a line for each property and each mutation. docs/model.md
lists both.
"""
