"""Configures and runs Envoy, the edge. Envoy also serves the documents of the API."""
