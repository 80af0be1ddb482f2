"""A whole stack, which is started like `make run`, and helpers for what tests do with it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from evershell.app.settings import AGENT_PORT_DISTANCE, Settings
from evershell.stack import postgres
from tests.support import pod_processes, secrets
from tests.support.cluster import copy_cluster
from tests.support.ports import free_ports
from tests.support.service import Service, ServiceWorkspace
from tests.support.waiting import LIMIT_SECONDS, eventually

# `up` exits if the stack is not ready after this time.
READY_SECONDS = 180.0
# docs/operating.md promises 10 s, but a busy machine takes longer.
STOP_SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[2]
# The folders of a checkout that contain the packages.
_SOURCES = ("server", "client", "gen", "envoy")
# A generator that other code cannot seed, unlike the shared generator of the random module.
_random = random.SystemRandom()


class Stack(Service):
    """A stack under test. Tests start and stop it, call it, and send signals to its processes."""

    # A checkout of the repository whose .venv is set up. May be changed before the start.
    checkout: Path = ROOT
    # Whether the stack makes its database cluster itself. If not, `start` copies an existing one.
    makes_cluster: bool = False
    # The program and arguments to put before the command line of `up`, such as `setpriv`. May be
    # changed before the start.
    runner: Sequence[str] = ()
    # Additional arguments for `up`. May be changed before the start.
    arguments: Sequence[str] = ()
    # How long a stop may take. May be changed before the stop.
    stop_seconds: float = STOP_SECONDS

    def __init__(self, state_dir: Path, **environment: str) -> None:
        super().__init__()
        self.state_dir = state_dir
        workers = int(environment.get("WORKERS", "2"))
        ports = free_ports(2 + workers, in_a_row=workers, distance=AGENT_PORT_DISTANCE)
        self._environment = {
            **{
                name: value
                for name, value in os.environ.items()
                # Leaves out GRPC_ENABLE_FORK_SUPPORT, because the stack itself must turn off
                # gRPC's fork() handlers.
                if name not in ("DATABASE_URL", "STATE_DIR", "WORKERS", "GRPC_ENABLE_FORK_SUPPORT")
            },
            "STATE_DIR": str(state_dir),
            "REST_PORT": str(ports[0]),
            "GRPC_PORT": str(ports[1]),
            "SERVER_PORT": str(ports[2]),
            "WORKERS": "2",
            # Off, because tests share credentials and make more calls than the limits allow.
            "RATE_LIMIT": "off",
            # Tests receive webhooks on loopback.
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.output = state_dir.with_name(state_dir.name + ".output")

    @property
    def rest_url(self) -> str:
        """The URL of the REST API. It is known even before the start."""
        return f"http://127.0.0.1:{self._environment['REST_PORT']}"

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [*self.runner, self.python, "-m", self.module, "up", *self.arguments],
                cwd=self.checkout,
                env={**self._environment, **environment_of(self.checkout)},
                stdout=output,
                stderr=output,
            )

    @property
    def python(self) -> str:
        """The Python interpreter of the checkout."""
        own = self.checkout == ROOT
        return sys.executable if own else str(self.checkout / ".venv" / "bin" / "python")

    @property
    def module(self) -> str:
        """The package with the commands. In checkouts of earlier versions, it has another name."""
        if (self.checkout / "server" / "evershell").is_dir():
            return "evershell.commands"
        return "evershell.server" if (self.checkout / "evershell").is_dir() else "server"

    def refuses_to_start(self) -> str:
        """Starts the stack, which must exit with code 1. Returns its output."""
        self._process = self._spawn()
        try:
            assert self._process.wait(READY_SECONDS) == 1
        finally:
            self.kill_if_running()
        return self.output.read_text()

    def start(self) -> None:
        """Starts the stack and waits until it is ready."""
        if not (self.makes_cluster or "DATABASE_URL" in self._environment):
            copy_cluster(self.state_dir)
        process, path = self._spawn(), self.state_dir / "ready.json"
        self._process = process
        eventually(lambda: path.exists() or process.poll() is not None, READY_SECONDS + 5)
        assert process.poll() is None, self.output.read_text()
        self.ready = json.loads(path.read_text())

    def restarts(self) -> int:
        """Returns the number of completed rolling restarts."""
        said = self.output.read_text()
        assert "given up" not in said, said
        return said.count("rolling_restart_completed")

    def set(self, **environment: str) -> None:
        """Changes environment variables for the next start."""
        self._environment |= environment

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops the stack and returns its exit code."""
        assert self._process is not None
        self.close_callers()
        self._process.send_signal(number)
        code = self._process.wait(self.stop_seconds)
        secrets.search(self.ready, self.state_dir)
        return code

    def lose(self) -> None:
        """Kills all programs of the control plane, as if their machine was lost.

        Agents continue to run.
        """
        assert self._process is not None
        self.close_callers()
        programs = [psutil.Process(self.pid), *psutil.Process(self.pid).children()]
        segments = [shared_memory(each) for each in programs if each.name() == "envoy"]
        # Kills the supervisor first, because it would restart the other programs.
        for process in programs:
            process.kill()
        self._process.wait(STOP_SECONDS)
        psutil.wait_procs(programs, STOP_SECONDS)
        for path in segments:
            path.unlink()
        (self.state_dir / "ready.json").unlink()

    @contextmanager
    def started(self) -> Iterator["Stack"]:
        """Starts the stack, and stops it after the block. Fails if the stop fails."""
        with self.ended():
            self.start()
            yield self
            assert self.stop() == 0, self.output.read_text()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Stops the stack after the block if the stack is still running.

        If the block fails, even during a start or a stop, kills every process of the stack. If the
        block succeeds, does not kill a process that a stop has left behind: such a process is a
        defect, which the test run must find.
        """
        try:
            yield
        except BaseException:
            try:
                self.kill_if_running()
            finally:
                _kill(self.state_dir)
            raise
        self.kill_if_running()

    def kill_if_running(self) -> None:
        """Stops the stack if it is still running."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(READY_SECONDS)
            secrets.search(self.ready, self.state_dir)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def processes(self) -> list[psutil.Process]:
        """Returns all processes of the stack except for `up`."""
        return psutil.Process(self.pid).children(recursive=True)

    @property
    def metrics_port(self) -> int:
        """The metrics port of the first worker; 0 if metrics are off."""
        return int(self._environment.get("METRICS_ADDRESS", "").rpartition(":")[2] or 0)

    @property
    def lease_seconds(self) -> float:
        """How long an agent may run without a renewal of its lease."""
        default = Settings.model_fields["lease_seconds"].default
        return float(self._environment.get("LEASE_SECONDS", default))

    def worker_addresses(self) -> list[str]:
        return self._addresses_of_workers(0)

    def runtime_addresses(self) -> list[str]:
        """Returns the addresses at which agents call the workers if AGENT_TLS is on."""
        return self._addresses_of_workers(AGENT_PORT_DISTANCE)

    def _addresses_of_workers(self, distance: int) -> list[str]:
        first_port = int(self.ready["server_addr"].rpartition(":")[2]) + distance
        workers = int(self._environment["WORKERS"])
        return [f"127.0.0.1:{first_port + index}" for index in range(workers)]

    def agent_pid(self, workspace_id: str) -> int:
        return int((self.state_dir / "pods" / workspace_id / "pid").read_text())

    @contextmanager
    def frozen_process(self, pid: int) -> Iterator[None]:
        """Freezes the process (SIGSTOP) inside the block, and lets it continue afterwards.

        If the process ends while its parent is frozen, it stays a zombie.
        """
        os.kill(pid, signal.SIGSTOP)
        try:
            eventually(
                lambda: (
                    psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
                )
            )
            yield
        finally:
            # The process may have ended.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def frozen(self, program: str) -> Iterator[None]:
        """Freezes all processes of a program, `serve` or `fleet`, inside the block.

        Also freezes the supervisor, which would replace the processes.
        """
        with ExitStack() as frozen:
            frozen.enter_context(self.frozen_process(self.pid))
            for pid in self.pids(program):
                frozen.enter_context(self.frozen_process(pid))
            yield

    def pids(self, program: str) -> list[int]:
        """Returns the process ids of a program, `serve` or `fleet`."""
        found = []
        for child in psutil.Process(self.pid).children():
            # A process that has just started or has ended has no command line.
            with suppress(psutil.Error):
                if child.cmdline()[1:4] == ["-m", self.module, program]:
                    found.append(child.pid)
        return found

    def leader_pid(self) -> int:
        """Returns the process id of the controller that became leader last."""
        acquired = [
            entry
            for path in (self.state_dir / "logs").glob("fleet-?.log")
            for line in path.read_text().splitlines()
            if (entry := json.loads(line))["event"] == "leadership_acquired"
        ]
        return int(max(acquired, key=lambda entry: str(entry["timestamp"]))["pid"])

    def replace_controllers(self) -> None:
        """Kills both controllers, and waits until two new ones run."""
        both = 2
        # The supervisor may still be replacing a controller that was killed earlier.
        eventually(lambda: len(self.pids("fleet")) == both)
        killed = self.pids("fleet")
        for pid in killed:
            self.kill(pid)
        eventually(lambda: len(set(self.pids("fleet")) - set(killed)) == both)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def terminate(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)

    def pod_processes(self, workspace_id: str) -> list[int]:
        """Returns the ids of the processes in the workspace's pod."""
        return [process.pid for process in pod_processes.of_pod(workspace_id)]

    def files(self, workspace_id: str) -> Path:
        return self.state_dir / "pods" / workspace_id / "files"


class Workspace(ServiceWorkspace):
    """A workspace that one test creates in a stack."""

    def __init__(self, stack: Stack, token: str = "full_access", name: str = "test") -> None:
        super().__init__(stack, token, name)
        self.stack = stack

    @property
    def agent_address(self) -> str | None:
        """The host and port of the workspace's agent; None until the agent has registered."""
        with self.stack.database() as connection:
            row = connection.execute(
                "SELECT agent_address FROM workspaces WHERE id = %s", (self.id,)
            ).fetchone()
        assert row is not None
        address: str | None = row[0]
        return address


class Gate:
    """A command that runs until the test opens the gate.

    The command waits at a named pipe in the agent's working directory.
    """

    command = "cat gate"

    def __init__(self, workspace: Workspace) -> None:
        self.path = workspace.stack.files(workspace.id) / "gate"
        # All tasks of the workspace use the same pipe, one after another.
        if not self.path.exists():
            os.mkfifo(self.path)

    def open(self, timeout_seconds: float = LIMIT_SECONDS) -> None:
        """Waits until the command has started, then lets it end."""
        with self.reached(timeout_seconds):
            pass

    @contextmanager
    def reached(self, timeout_seconds: float = LIMIT_SECONDS) -> Iterator[None]:
        """Waits until the command has started, and lets it end at the end of the block."""

        def writer() -> int | None:
            try:
                return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                # No process has opened the pipe for reading yet.
                return None

        descriptor = eventually(writer, timeout_seconds)
        assert descriptor is not None
        try:
            yield
        finally:
            os.write(descriptor, b"open\n")
            os.close(descriptor)


def shared_memory(envoy: psutil.Process) -> Path:
    """Returns the shared memory file of a running Envoy. Envoy does not remove this file."""
    command = envoy.cmdline()
    base_id = command[command.index("--base-id") + 1]
    return Path("/dev/shm") / f"envoy_shared_memory_{base_id}0"  # noqa: S108 - Envoy's choice


def environment_of(checkout: Path) -> dict[str, str]:
    """Returns the variables with which a program runs the code of `checkout`.

    A copied checkout uses the virtual environment of this checkout. Without these variables, Python
    would find the code of this checkout.
    """
    if checkout == ROOT or not (checkout / "server" / "evershell").is_dir():
        return {}
    return {"PYTHONPATH": os.pathsep.join(str(checkout / each) for each in _SOURCES)}


def processes_of(state_dir: Path) -> list[str]:
    """Returns the running processes of a stack, each with its id and command.

    A process belongs to a stack if its command, its environment or its working directory contains
    the state folder.
    """
    found = []
    for process in psutil.process_iter():
        try:
            texts = _texts(process)
        except (psutil.Error, OSError):
            continue
        if process.pid != os.getpid() and any(str(state_dir) in text for text in texts):
            found.append(f"{process.pid} {process.cmdline()}")
    return found


def _texts(process: psutil.Process) -> list[str]:
    """Returns the texts that may contain the state folder of the stack of a process."""
    return [*process.cmdline(), *process.environ().values(), process.cwd()]


def _kill(state_dir: Path) -> None:
    """Kills the processes of a stack, and the processes that they start in the meantime."""
    # Stops PostgreSQL, because a server that is killed leaves its shared memory behind.
    postgres.clear_stale(postgres.places(state_dir).data_dir)
    place = re.compile(rf"{re.escape(str(state_dir))}(?![\w.-])")

    segments: set[Path] = set()

    def is_of_stack(process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            is_found = any(place.search(text) for text in _texts(process))
            if is_found and process.name() == "envoy":
                segments.add(shared_memory(process))
            return is_found and process.pid != os.getpid()
        return False

    def killed() -> list[psutil.Process]:
        # Finds all processes before it kills the first one. Envoy ends when `up` ends, and its
        # shared memory can be found only while Envoy runs.
        found = list(filter(is_of_stack, psutil.process_iter()))
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        return found

    eventually(lambda: not killed(), STOP_SECONDS)
    for segment in segments:
        segment.unlink(missing_ok=True)


def unique_seconds() -> str:
    """Returns a unique argument for `sleep`, about a day, by which a test can find the process."""
    return f"86400.{_random.randrange(10**9):09}"


def running(argument: str) -> list[int]:
    """Returns the ids of running processes with this command-line argument."""
    processes = [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if argument in (process.info["cmdline"] or [])
    ]
    return [process.pid for process in processes if process.info["status"] != psutil.STATUS_ZOMBIE]
