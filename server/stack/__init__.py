"""The whole on one machine: what `make run` starts and watches."""
