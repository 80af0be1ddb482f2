"""The promises of the service about tasks and their logs, written once for every kind of test."""
