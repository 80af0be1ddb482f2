"""Pods: makes the wanted ones exist, ends the others, and reaches their agents."""
