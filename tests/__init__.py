"""All tests, and the bench."""

import os

# gRPC reads it when it is imported. Its handlers of fork() sometimes write a line to standard error
# of the process that a test starts, and so into a log that the test reads.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
