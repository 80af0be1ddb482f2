"""Tokens: who calls."""
