"""The suite of `evershell agent check`: an agent of one's own, and a control plane in memory."""
