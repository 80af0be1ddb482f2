"""Envoy, the edge: its configuration, its process, and the documents that it serves."""
