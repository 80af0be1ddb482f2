"""The system calls that a tool in a sandbox may make: seccomp(2).

An allow-list, like the default profiles of container engines. A call that is not in the list fails
as in a kernel without this call (ENOSYS), so that programs use their fallback for older kernels.
"""

import errno
import socket
import tempfile

from evershell.core.errors import OperatorError

_ALLOWED = """
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd
eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod
fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake
futimesat get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid
getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr
listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier
mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv
preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64
pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages
removexattr removexattrat rename renameat renameat2 restart_syscall riscv_flush_icache riscv_hwprobe
rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setfsgid setfsuid setgid
setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid
setsockopt setuid setxattr setxattrat shutdown sigaltstack signalfd signalfd4 socketpair splice stat
statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork
vmsplice wait4 waitid write writev
"""
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
# PER_LINUX and PER_LINUX32, each with and without UNAME26, and 0xFFFFFFFF, which only queries.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
_NAMESPACES = 0x7E020000
# What libseccomp returns for a call that is newer than itself.
_UNKNOWN = -1
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_SHARED_ANONYMOUS = _MAP_SHARED | _MAP_ANONYMOUS


def compile_filter() -> bytes:
    """The filter as a BPF program, for `bwrap --seccomp`. Raises OperatorError.

    Allows shared memory only in files, because a tool's file systems have a size limit. Nothing
    would limit memfd_create, System V shared memory and shared anonymous mappings, so they are
    blocked.
    """
    try:
        # Loads libseccomp.
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise OperatorError(f"{error}; as root: apt-get install libseccomp2") from error
    allow, argument, masked = pyseccomp.ALLOW, pyseccomp.Arg, pyseccomp.MASKED_EQ
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    # Kills a process that makes a call of another architecture, where calls have other numbers.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for name in _ALLOWED.split():
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number != _UNKNOWN:
            rules.add_rule(allow, number)
    # clone3 is not allowed, because its flags are in memory, which a filter cannot read. Programs
    # then use clone.
    rules.add_rule(allow, "clone", argument(0, masked, _NAMESPACES, 0))
    for family in _FAMILIES:
        rules.add_rule(allow, "socket", argument(0, pyseccomp.EQ, family))
    for personality in _PERSONALITIES:
        rules.add_rule(allow, "personality", argument(0, pyseccomp.EQ, personality))
    rules.add_rule(allow, "mmap", argument(3, masked, _MAP_ANONYMOUS, 0))
    rules.add_rule(allow, "mmap", argument(3, masked, _SHARED_ANONYMOUS, _MAP_ANONYMOUS))
    rules.add_rule(
        pyseccomp.ERRNO(errno.ENOMEM),
        "mmap",
        argument(3, masked, _SHARED_ANONYMOUS, _SHARED_ANONYMOUS),
    )
    with tempfile.TemporaryFile() as exported:
        rules.export_bpf(exported)
        exported.seek(0)
        return exported.read()
