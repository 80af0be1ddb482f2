"""Chaos: callers cancel tasks while faults occur, which are drawn from a seed.

If a promise was broken, the run exits with 1, lists the broken promises, and keeps the logs and the
history of the calls. evershell.histories judges the history. Other modules judge what no caller
sees: processes, rows, files and costs. It is a violation if a workspace failed or the supervisor
replaced a program, unless a fault explains it (unhurt.py). If an agent ran out of time because it
or the workers waited for a processor, or because faults kept the control plane from answering, the
run lists its workspace, but not as a violation.

There are three places (`--place`). `machine` is one machine. It needs root to mount small disks for
pods, logs and the database, and sometimes fills these disks. In `pair`, the database is a primary
with a synchronous standby and fails over, agents use TLS, wall clocks step by an hour, and the
programs are upgraded to a later version and back. It needs libfaketime. In `hosts`, the edge,
workers, two controllers, the database and agents are in separate network namespaces. The run cuts
the connections between two groups of them, in both directions or in one. Programs get no error when
this happens. It needs root and `ip`. A run leaves out what this machine does not allow, and reports
it. With `--load 40`, 40 processes of other programs are ready to run during the whole run.
"""
