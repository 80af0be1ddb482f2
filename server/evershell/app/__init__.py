"""Settings, wiring, programs and signals."""
