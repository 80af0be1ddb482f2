"""Attacks on a running stack. The stack must refuse each of them."""
