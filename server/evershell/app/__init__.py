"""Settings, the programs of the control plane, and their signals."""
