"""Models of the protocol that Spin explores completely, and mutations of these models.

`make spec` runs everything and prints a line for each property and each mutation. docs/model.md
lists the properties.
"""
