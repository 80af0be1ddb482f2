"""The peers: what people would build instead of this service, made for a comparison of speed.

Each peer runs in its own process, with one worker, as many connections to the database as a
worker of this service, and the log level `warning`. It has its own database on the given
server, and signals an agent: the FastAPI peer over HTTP, and the a2a-sdk peer over gRPC. The
packages of the peers are in the group `bench`; only the modules `*_app` and `server` import them,
in their own processes.
"""
