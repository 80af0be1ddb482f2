"""Attacks on a running stack. Each of them has to be refused."""
