"""What the service promises of tasks and their logs, written once for every kind of test."""
