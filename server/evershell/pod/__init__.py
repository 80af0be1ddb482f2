"""What the control plane and the agent in a pod agree on."""
