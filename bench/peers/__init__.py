"""The peers: what people would build instead of this service. The bench compares their speed.

Each peer is one process. It has as many connections to the database as a worker of this service,
and the log level `warning`. It has its own database on the given PostgreSQL server, and signals an
agent: the FastAPI peer over HTTP, and the a2a-sdk peer over gRPC. The packages of the peers are in
the dependency group `bench`. Only the modules `*_app` and `server` import them, in the processes of
the peers.
"""
