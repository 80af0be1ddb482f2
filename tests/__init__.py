"""All tests."""

import os

# gRPC reads this variable when it is imported. Otherwise its fork() handlers sometimes write a line
# to standard error of a process that a test starts, and thereby into a log that the test reads.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
