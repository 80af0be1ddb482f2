"""The interceptors of the gRPC server, one per file. api/chain.py lists them in order."""
