"""Chaos: callers cancel tasks while faults are drawn at random from a seed.

If a promise was broken, the run exits with 1, lists the broken promises and keeps the logs and the
history of its calls, which evershell.histories judges. What no caller sees (processes, rows, files,
costs) has verdicts of its own. A workspace that failed, or a program that the supervisor replaced,
is a violation unless a fault has hurt it (unhurt.py). If a lease ran out because the agent or the
workers waited for a processor, or because faults kept the control plane from answering, the lease
was too short for the machine and the faults: the run lists it, but not as a violation.

There are three places (`--place`). `machine` is one machine. It needs root to mount small disks for
pods, logs and the database, which it sometimes fills. In `pair`, the database is a primary with a
synchronous standby and fails over, agents use TLS, wall clocks step by an hour, and the programs
roll to a later version and back. It needs libfaketime. In `hosts`, the edge, workers, two
controllers, the database and agents are in network namespaces, and pairs of them are cut, both ways
or one way, without any error that says so. It needs root and `ip`. What a run cannot do, it leaves
out and says so. With `--load 40`, 40 processes of other programs are ready to run during the whole
run.
"""
