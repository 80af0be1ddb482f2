"""The cancel button of an agent platform."""
