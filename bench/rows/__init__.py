"""The blocks of the bench, in one module for each subject."""

from bench.plan import Block
from bench.rows import (
    burst,
    callers,
    edge,
    fleet,
    idle,
    peers,
    replay,
    size,
    streams,
    truth,
    watchers,
    webhooks,
    workers,
)


def all_blocks(quick: bool) -> list[Block]:
    """All blocks, in the order of the table."""
    modules = (
        callers,
        burst,
        edge,
        replay,
        peers,
        watchers,
        streams,
        webhooks,
        workers,
        size,
        fleet,
        idle,
        truth,
    )
    return [block for module in modules for block in module.blocks(quick)]
