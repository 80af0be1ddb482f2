"""Chaos: callers cancel tasks while faults are drawn at random from a seed.

If a promise was broken, the run exits with 1, lists the broken promises and keeps the logs. The
first part runs on one machine and needs root to mount small disks for pods, logs and the database,
which it sometimes fills. The second part runs on many hosts: edge, workers, two controllers,
database and agents are in network namespaces, and pairs of them are cut, both ways or one way,
without any error that says so. It needs root and `ip`. What a run cannot do, it leaves out and says
so. With `--place machine` or `--place hosts`, one part runs alone.
"""
