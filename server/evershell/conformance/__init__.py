"""The suite of `evershell agent check`: runs a custom agent with a control plane in memory."""
