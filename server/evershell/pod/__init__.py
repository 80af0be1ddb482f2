"""What both sides of a pod agree on: the control plane that starts it, and the agent in it."""
