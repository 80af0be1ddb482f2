"""The bench: compares the service with the least that a server on this stack must do.

`make bench` prints one table and writes bench.json. Run it on an otherwise idle machine. Options
are variables of the environment:

- QUICK=1: shorter windows, fewer rounds, fewer rows; 60 s instead of 10 minutes.
- ROWS=text: only rows, or blocks of rows, whose names contain the text; writes bench.partial.json.
- ROUNDS=n: the number of rounds, for all rows.
- COMPARE=path: also measures the server of another checkout, in turn with this one, and prints
  before ÷ after for each row; writes bench.partial.json.
- BENCH_CACHE=folder: where `python -m bench.size` keeps the large database. Without that
  database, its rows are left out.

How to read the table:

- A row is measured once in each round, and everything that it compares runs one after the other in
  the same round. A ratio is computed in each round; the row has the median, minimum and maximum of
  these. Absolute figures change with the machine and the hour. Ratios hardly do.
- The floor is a bare gRPC server: one update of a row and an empty call to an agent. The durable
  floor records a cancellation in one statement instead of the update. Both are in servers/floor.py
  and do not change with the service.
- `holds` compares the median with the target.
- `before ÷ after` has a verdict only if there are at least 5 pairs, all on the same side of 1.

The benchmark runs the full path of a CancelTask: the real worker, Envoy where the row says so, an
API key, the commit, the signal to an agent, the reply. Each call cancels its own task, which
was put into the database before the window. After the window, every call that was answered must
have its intent, exactly one event and the next position in its log, and no other task may have
changed; otherwise the bench fails. Meanwhile the fleet controller is a standby, and one agent of
the bench stands for the agents of all these tasks. The bench writes the frames of its load itself
(http1.py, http2.py); its own limit is a row. A block of rows is a module in rows/: its windows, and
how its rows follow.
"""
