"""The gRPC edge: decodes, calls the core, encodes."""
