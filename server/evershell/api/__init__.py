"""The gRPC interface: decodes, calls the core, encodes."""
