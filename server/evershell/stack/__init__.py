"""The stack on one machine: PostgreSQL, Envoy and all programs."""
