"""Tests of `evershell agent check`, with good agents and broken ones."""
