"""The attacks of a tool on everything outside its sandbox."""

from dataclasses import dataclass

# An attack that succeeds prints this.
THROUGH = "got-through"
_ABSENT = "No such file or directory"
_NO_PROCESS = "No such process"
_NO_CALL = "Function not implemented"
_DENIED = f"Permission denied|Operation not permitted|Read-only file system|superuser|{_NO_CALL}"
_NO_NETWORK = "Network is unreachable|Connection refused"
_FULL = "No space left on device"


@dataclass(frozen=True, slots=True)
class Attack:
    """A shell command, and a pattern that its output matches if the attack was refused.

    Names in braces are fields of Target.
    """

    name: str
    command: str
    refusal: str


@dataclass(frozen=True, slots=True)
class Target:
    """What an attack knows about the machine. A tool could not find out all of it."""

    state: str
    other: str
    database_socket: str
    admin_socket: str
    abstract_socket: str
    agent_pid: int
    agent_port: int
    other_agent_port: int
    server_port: int


def _read(name: str, path: str) -> Attack:
    return Attack(f"read {name}", f"cat {path} && echo {THROUGH}", _ABSENT)


def _unix(name: str, path: str, refusal: str = _ABSENT) -> Attack:
    connect = (
        "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) or die $!; "
        f'connect(S, sockaddr_un({path})) or die "refused: $!"; print "{THROUGH}"\''
    )
    return Attack(f"connect to {name}", connect, refusal)


def _inet(name: str, address: str, port: str) -> Attack:
    connect = (
        f"perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) or die $!; "
        f'connect(S, sockaddr_in({port}, inet_aton("{address}"))) or die "refused: $!"; '
        f'print "{THROUGH}"\''
    )
    return Attack(f"connect to {name}", connect, _NO_NETWORK)


def _run(name: str, command: str, refusal: str = _DENIED) -> Attack:
    return Attack(name, f"{command} && echo {THROUGH}", refusal)


def _syscall(name: str, call: str, refusal: str = _DENIED) -> Attack:
    """An attack by a Perl expression `call`, which is true if the attack succeeds."""
    return Attack(name, f'perl -e \'{call} or die "refused: $!"; print "{THROUGH}"\'', refusal)


def _fill(name: str, script: str) -> Attack:
    """An attack by a Perl `script`.

    Each call to fill() in the script uses 60 MiB of memory. A tool may use 128 MiB.
    """
    fill = "syscall(10, syscall(9, 0, 60 << 20, 3, 0x8022, -1, 0), 60 << 20, 1)"
    command = f"perl -e 'sub fill {{ {fill} }} {script}; sleep 10; print \"{THROUGH}\"'"
    return Attack(name, command, "used more than 128 MiB")


_PTRACE_ATTACH = "101, 16"

ATTACKS = (
    # Secrets and files.
    _read("the signing key", "{state}/control-plane.jwk"),
    _read("its own record", "{state}/fleet/*/agent"),
    _read("another pod's file", "{state}/pods/{other}/files/secret"),
    _read(
        "the signing key through a link", "link; ln -sf {state}/control-plane.jwk link; cat link"
    ),
    _read("the password file of the machine", "/etc/shadow"),
    _run("list the state folder", "ls {state}", _ABSENT),
    _run("write next to its files", "echo 1 > ../pid", "Read-only file system"),
    _run("write to the system's programs", "touch /usr/bin/evil", "Read-only file system"),
    _run("inherit a descriptor", "test -n \"$(ls /proc/self/fd | grep -v '^[0123]$')\"", r"\A\Z"),
    _run("find a token in the environment", "env | grep -i -e token -e secret -e eyJ", r"\A\Z"),
    _run(
        "find a token in another process",
        "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep eyJ[A-Za-z0-9]",
        r"\A\Z",
    ),
    # Processes.
    _run(
        "see a process of the stack",
        "cat /proc/[0-9]*/cmdline | grep -aq '[e]vershell.agents'",
        r"\A\Z",
    ),
    _run("read the agent's environment", "cat /proc/{agent_pid}/environ", _ABSENT),
    _run("read the agent's memory", "cat /proc/{agent_pid}/mem", _ABSENT),
    _run("kill the agent", "kill -9 {agent_pid}", _NO_PROCESS),
    _run(
        "kill any other process",
        "for pid in $(seq 3 400); do [ $pid -ge $$ ] || kill -9 $pid; done 2>/dev/null; false",
        r"\A\Z",
    ),
    _syscall(
        "trace the agent", f"syscall({_PTRACE_ATTACH}, {{agent_pid}}, 0, 0) == 0", _NO_PROCESS
    ),
    _run(
        "lower the priority of all agents", "echo 19 > /proc/self/autogroup", f"{_DENIED}|{_ABSENT}"
    ),
    # Network.
    _unix("the database", '"{database_socket}"'),
    _unix("Envoy's admin socket", '"{admin_socket}"'),
    _unix("an abstract socket", r'"\0{abstract_socket}"', "Connection refused"),
    _inet("its own agent", "127.0.0.1", "{agent_port}"),
    _inet("another agent", "127.0.0.1", "{other_agent_port}"),
    _inet("RuntimeService", "127.0.0.1", "{server_port}"),
    _inet("the internet", "1.1.1.1", "443"),
    _inet("the metadata of the cloud", "169.254.169.254", "80"),
    _syscall("open a raw socket", "socket(S, 2, 3, 1)"),
    # Escapes.
    _run("mount a file system", "mount -t tmpfs none /tmp"),
    _run("unmount what hides the machine", "umount /proc", "umount failed"),
    _run("change the root", "chroot /usr /bin/true"),
    _run("make a user namespace", "unshare --user --map-root-user true", f"{_FULL}|{_DENIED}"),
    _run("make a mount namespace", "unshare --mount true"),
    _run("join the agent's namespaces", "nsenter --target 1 --mount --net true"),
    _run("make a sandbox of its own", "bwrap --bind / / true", f"not found|{_DENIED}"),
    _syscall("become root", "($> = 0, $> == 0)[1]", f"{_DENIED}|Invalid argument"),
    _run("become root by a program", "su -c true", "."),
    _run("gain privileges by a program", "grep -q 'NoNewPrivs:.0' /proc/self/status", r"\A\Z"),
    _run("have a capability", "grep -q 'Cap...:.*[1-9a-f]' /proc/self/status", r"\A\Z"),
    _run("make a device file", "mknod disk b 254 0"),
    _run("read the memory of the machine", "cat /dev/mem", _ABSENT),
    _run("read a disk", "cat /dev/vda /dev/sda /dev/nvme0n1", _ABSENT),
    _run("change the kernel's settings", "echo 1 > /proc/sys/kernel/core_pattern"),
    _run("restart the machine", "echo b > /proc/sysrq-trigger", f"{_DENIED}|nonexistent"),
    _run("see the devices", "ls /sys/class", _ABSENT),
    _syscall("load a kernel module", "syscall(175, 0, 0, 0) == 0", f"{_DENIED}|not implemented"),
    _syscall("change the name of the machine", "syscall(170, 0, 0) == 0"),
    _syscall("set the clock", "syscall(164, 0, 0) == 0"),
    # System calls that no tool needs, and through which programs have escaped from other sandboxes.
    _syscall("open a socket to the hypervisor", "socket(S, 40, 1, 0)", _NO_CALL),
    _syscall("open a socket to the kernel's cryptography", "socket(S, 38, 5, 0)", _NO_CALL),
    _syscall("use io_uring", '$p = "\\0" x 120, syscall(425, 8, $p) >= 0', _NO_CALL),
    _syscall(
        "add a key to the kernel", '$p = "user", syscall(248, $p, $p, $p, 4, -3) >= 0', _NO_CALL
    ),
    _syscall("read the keys of the kernel", "syscall(250, 0, -3, 0) >= 0", _NO_CALL),
    _syscall("load a program into the kernel", '$p = "\\0" x 120, syscall(321, 0, $p, 72) >= 0'),
    _syscall("handle page faults", "syscall(323, 1) >= 0", _NO_CALL),
    _syscall("trace the machine", '$p = "\\0" x 120, syscall(298, $p, 0, -1, -1, 0) >= 0'),
    _syscall("clone into a user namespace", "syscall(56, 0x10000011, 0, 0, 0, 0) >= 0", _NO_CALL),
    _syscall("clone with flags in memory", "syscall(435, 0, 0) >= 0", _NO_CALL),
    # Attacks on resources, whose limits test_sandbox.py sets.
    _syscall("fill the memory", '$x = "x" x (400 << 20)', "Out of memory"),
    _fill("fill the memory and make it read-only", "fill() for 1..8"),
    _fill("fill the memory with many processes", "fork for 1..3; fill()"),
    _syscall(
        "share memory without a file",
        "syscall(9, 0, 1 << 20, 3, 0x21, -1, 0) > 0",
        "Cannot allocate memory",
    ),
    _syscall(
        "share memory through a device",
        'open(Z, "+<", "/dev/zero"), syscall(9, 0, 1 << 20, 3, 1, fileno(Z), 0) > 0',
        "No such device",
    ),
    _syscall("make a file in memory", '$p = "a", syscall(319, $p, 0) >= 0', _NO_CALL),
    _syscall("make a secret file in memory", "syscall(447, 0) >= 0", _NO_CALL),
    _syscall("share a segment of memory", "syscall(29, 0, 1 << 20, 0600) >= 0", _NO_CALL),
    _run(
        "fill the process table",
        'perl -e \'for (1..200) { defined($pid = fork) or die "refused: $!"; '
        "$pid or sleep(30) && exit }'",
        "Resource temporarily unavailable",
    ),
    _run(
        "fill the scratch folder",
        "for i in 1 2 3 4; do head -c 50M /dev/zero > /tmp/$i || exit 1; done",
        _FULL,
    ),
    _run(
        "fill the shared memory",
        "for i in 1 2 3 4; do head -c 50M /dev/zero > /dev/shm/$i || exit 1; done",
        _FULL,
    ),
    _run("fill the disk with a file", "head -c 200M /dev/zero > x", "File too large|File size"),
    _run("raise a limit", "prlimit --nproc=100000 --pid $$", _DENIED),
    _syscall("raise its priority", "setpriority(0, 0, -10)"),
)
