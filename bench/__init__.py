"""The bench: compares the service with servers that do only the minimum for the same calls.

`make bench` prints one table and writes bench.json. Run it on an otherwise idle machine. The
options are environment variables:

- QUICK=1: shorter windows (periods of measurement), fewer rounds and fewer rows. The run takes 60 s
  instead of 10 minutes.
- ROWS=text: only rows, or blocks of rows, whose names contain the text. Writes bench.partial.json.
- ROUNDS=n: the number of rounds, for all rows, however long they take.
- COMPARE=path: alternates between the server of the checkout at `path` (before) and the server of
  this checkout (after), and prints before ÷ after for each row. Writes bench.partial.json.
- BENCH_CACHE=folder: where `python -m bench.size` keeps the large database. If there is no such
  database, the rows that need it are left out.

How to read the table:

- Each round measures every row once. If a row compares several things, the round measures them
  one after the other and computes their ratio. The row shows the median, the minimum and the
  maximum of all rounds. Absolute figures depend on the machine and on the time of day. Ratios
  hardly do.
- The floor is a bare gRPC server that updates one row of a table and makes an empty call to an
  agent. The durable floor records a cancellation in one statement instead of the update. Both are
  in servers/floor.py, have tables of their own and do not change with the service.
- `holds` says whether the median is within the target.
- With COMPARE, each pair of rounds gives a ratio, before ÷ after. A row has a verdict only if there
  are at least 5 ratios, all on the same side of 1.

The benchmark runs the full path of a CancelTask: the real worker, Envoy where the row says so, an
API key, the commit, the signal to an agent, the reply. Each call cancels its own task, which
was put into the database before the window. After the window, the database must have an intent
and exactly one event, at the next position of its log, for every call that was answered, and no
other task may have changed. Otherwise the bench fails. During the windows, the fleet controller is
a standby, and one agent of the bench stands for the agents of all these tasks. The bench sends
its load over plain sockets, without a client library (http1.py, http2.py), and one row shows how
many calls the load generator can make at most. Each module in rows/ has one or more blocks. A block
defines windows, and the rows that are computed from them.
"""
