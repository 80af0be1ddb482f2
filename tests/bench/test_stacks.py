from xml.etree import ElementTree

import pytest

from tests.bench import flame_graph, stacks

START = "_run_module_as_main (<frozen runpy>:198);Command.main (click/core.py:1560)"
LOOP = (
    f"{START};run (uvloop/__init__.py:92);Loop__run (loop.c:20313);task_step (_asynciomodule.c:1)"
)
CORE = "0x7f01 (grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so)"
COLOURS = {"": "#000", "a": "#111", "d": "#222"}
LOG = "RequestLog.around (api/interceptors/request_log.py:44)"
ERRORS = "Errors.around (api/interceptors/errors.py:27)"
USE_CASE = "CancelTask.__call__ (core/cancel_task.py:60)"
CALL = f"{LOOP};{CORE};{CORE};{LOG};{ERRORS}"


def only(*frames: str) -> stacks.Stack:
    (stack,) = stacks.read([";".join(frames) + " 1"])
    return stack


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        ([LOOP], stacks.LOOP),
        ([LOOP, CORE, "sendmsg (libc.so.6)"], stacks.ENGINE),
        # The interceptors read and reply through the engine, as any server would.
        ([CALL, "Context.read (grpc/aio/_server.py:3)", CORE], stacks.ENGINE),
        ([LOOP, CORE, LOG, "Context.read (grpc/aio/_server.py:3)", CORE], stacks.ENGINE),
        ([CALL], stacks.INTERCEPTORS),
        # As py-spy names files of a namespace package.
        ([CALL, USE_CASE.replace("evershell/", "")], stacks.USE_CASE),
        ([LOOP, "encode (workspace/v1/task_pb2.py:1)"], stacks.CODEC),
        ([CALL, USE_CASE], stacks.USE_CASE),
        # The request log is around the whole call, and only has what no inner frame has.
        ([LOOP, CORE, LOG, "JSONEncoder.encode (json/encoder.py:200)"], stacks.LOG),
        (
            [CALL, USE_CASE, "execute (psycopg/cursor_async.py:9)", "send (libc.so.6)"],
            stacks.DATABASE,
        ),
        (
            [CALL, USE_CASE, "AgentClient.cancel_task (fleet/agent_client.py:7)"],
            stacks.SIGNAL,
        ),
        ([CALL, USE_CASE, "UnaryUnaryCall._invoke (grpc/aio/_call.py:595)", CORE], stacks.SIGNAL),
        (
            [
                CALL,
                "cancellation (api/codec.py:9)",
                "now (protobuf/internal/x.py:1)",
            ],
            stacks.CODEC,
        ),
        (["0x7f02 (libfoo-1.so.1)"], stacks.REST),
    ],
)
def test_a_sample_belongs_to_the_innermost_part(frames: list[str], part: str) -> None:
    assert stacks.part(only(*frames)) == part


def test_a_thread_that_waits_is_no_sample() -> None:
    waiting = ["epoll_wait (libc.so.6)", "0x7f03 (libc.so.6)"]

    assert not stacks.read([";".join([CORE, *waiting]) + " 7"])
    assert stacks.read([f"{CORE};epoll_ctl (libc.so.6) 7"]).total() == 7


def test_stacks_that_differ_in_addresses_are_one() -> None:
    other = CORE.replace("0x7f01", "0x7f99")

    assert stacks.read([f"{LOOP};{CORE} 2", f"{LOOP};{other};{CORE} 3"]) == {
        ("uvloop", "asyncio", "grpc core"): 5
    }


def test_a_frame_is_as_wide_as_its_share() -> None:
    counts = {("a", "b"): 3, ("a", "<c>"): 1, ("d",): 4}

    document = ElementTree.fromstring(  # noqa: S314 - our own document
        flame_graph.draw(counts, lambda stack: stack[0] if stack else "", COLOURS)
    )

    drawn = {}
    for group in document.findall(".//{*}g"):
        title, box = group.find("{*}title"), group.find("{*}rect")
        assert title is not None and box is not None
        x, width = (float(box.get(name, "")) for name in ("x", "width"))
        drawn[title.text] = (x, width, box.get("fill"))
    assert drawn == {
        "all: 100.0%": (0, 1200, "#000"),
        "a: 50.0%": (0, 600, "#111"),
        "b: 37.5%": (150, 450, "#111"),
        "<c>: 12.5%": (0, 150, "#111"),
        "d: 50.0%": (600, 600, "#222"),
    }
