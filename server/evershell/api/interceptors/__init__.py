"""The interceptors of the gRPC server, one a file. api/chain.py lists them in order."""
