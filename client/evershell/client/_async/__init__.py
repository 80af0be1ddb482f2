"""One form of the client."""
