"""The peers: what people would build instead of this service, made for a comparison of speed.

Each peer runs in a process of its own, with one worker, as many connections to the database as a
worker of this service, and the log level `warning`. It has a database of its own on the given
server, and signals an agent: FastAPI's over HTTP, that of a2a-sdk over gRPC. The packages of the
peers are in the group `bench`; only the modules `*_app` and `server` import them, in processes of
their own.
"""
