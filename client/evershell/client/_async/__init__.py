"""The asynchronous client, from which `make gen` generates the synchronous one."""
