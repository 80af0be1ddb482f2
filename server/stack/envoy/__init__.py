"""Configures and runs Envoy, the edge, and has it serve the API's documents."""
