"""The interceptors of the gRPC server, one a file. server/api/chain.py lists them in order."""
