"""The embedded Postgres's configuration files, scaled to the machine, and its TCP address.

:func:`measure_machine` looks, the ``*_text`` functions only write down.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgdefect.core.errors import UsageError

DEFAULT_PORT = 5432  # names the socket file; in a private directory it meets no other server
MIB = 1 << 20
GIB = 1 << 30

# Appended once to the postgresql.conf that initdb wrote; of two settings the later wins.
INCLUDES_TEXT = """
# Added by pgdefect. pgdefect.conf is rewritten at every start; user.conf is yours.
include_if_exists = 'pgdefect.conf'
include_if_exists = 'user.conf'
"""

USER_CONF_TEXT = """\
# Settings of your own. They win over pgdefect.conf, and pgdefect never changes this file.
"""


@dataclass(frozen=True)
class Machine:
    """What the settings are scaled to; memory and shared memory in bytes."""

    memory: int
    cores: int
    shared_memory: int


def measure_machine() -> Machine:
    """The machine as this process may use it: the smaller of its memory and its cgroup's limit."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    limits = [psutil.virtual_memory().total, *_cgroup_memory_limits()]
    try:
        volume = os.statvfs("/dev/shm")
        shared_memory = volume.f_blocks * volume.f_frsize
    except OSError:
        shared_memory = 0
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(memory=min(limits), cores=cores, shared_memory=shared_memory)


def _cgroup_memory_limits(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    candidates = [root / "memory.max", root / "memory/memory.limit_in_bytes"]
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            group = group.lstrip("/")
            if not controllers:
                candidates.append(root / group / "memory.max")
            elif "memory" in controllers.split(","):
                candidates.append(root / "memory" / group / "memory.limit_in_bytes")
    except OSError:
        pass
    limits = []
    for path in candidates:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # absent, or the word "max"
            continue
    return [limit for limit in limits if limit > 0]


def settings_text(
    machine: Machine,
    *,
    socket_dir: Path,
    listen_host: str,
    port: int,
    has_lz4: bool,
    preload: str = "",
    major: int = 18,
) -> str:
    """The content of ``pgdefect.conf``; an empty ``listen_host`` means no TCP.

    Args:
        preload: libraries to load at the start, which must be there.
        major: the server's version.
    """
    maintenance_work_mem = _between(64 * MIB, machine.memory // 16, GIB)
    # A parallel HNSW build takes maintenance_work_mem as dynamic shared memory, and
    # containers often have a /dev/shm of 64 MB: such builds would fail there.
    roomy = machine.shared_memory >= max(512 * MIB, maintenance_work_mem + 256 * MIB)
    return f"""\
# Written by pgdefect at every start. Put settings of your own into user.conf, beside this file.

listen_addresses = {quote_setting(listen_host)}
port = {port}
unix_socket_directories = {quote_setting(_quote_list_item(str(socket_dir)))}
unix_socket_permissions = 0700
max_connections = 50

shared_buffers = {_megabytes(_between(128 * MIB, machine.memory // 8, 4 * GIB))}
effective_cache_size = {_megabytes(max(128 * MIB, machine.memory // 2))}
maintenance_work_mem = {_megabytes(maintenance_work_mem)}
work_mem = 32MB
max_parallel_maintenance_workers = {min(machine.cores, 4)}
dynamic_shared_memory_type = {"posix" if roomy else "mmap"}
huge_pages = try
# A statement over a partitioned table may lock every partition, and each bank is one.
max_locks_per_transaction = 256
shared_preload_libraries = {quote_setting(preload)}

# Planner: solid-state disks; compiling a vector search takes longer than running it.
random_page_cost = 1.1
jit = off

# One server without replicas or archive: a bulk load into a new table needs no WAL.
wal_level = minimal
max_wal_senders = 0
max_logical_replication_workers = 0
wal_compression = {"lz4" if has_lz4 else "on"}
max_wal_size = 4GB
checkpoint_timeout = 15min
fsync = on
full_page_writes = on
synchronous_commit = on

# Nothing here notifies; what listeners have not read yet may fill 8 MB and not 8 GB.
{"max_notify_queue_pages = 1024" if major >= 17 else "# (no limit before Postgres 17)"}

# The log goes to server.log. It holds no statement, and of a message neither DETAIL nor CONTEXT,
# which quote rows; the message itself may quote a value that a session sent. Sessions of readers
# and writers write nothing into it (ALTER ROLE … SET log_min_messages).
logging_collector = off
log_min_messages = warning
log_min_error_statement = panic
log_error_verbosity = terse
log_checkpoints = off
log_line_prefix = '%m [%p] '
"""


def hba_text(*, tcp: bool) -> str:
    """The content of ``pg_hba.conf``: the owner by the OS's word, TCP by password only."""
    lines = ["# Written by pgdefect at every start.", "local all all peer map=pgdefect"]
    if tcp:
        lines += [f"host all all {network} scram-sha-256" for network in ("0.0.0.0/0", "::0/0")]
    return "\n".join(lines) + "\n"


def ident_text(os_users: Sequence[str]) -> str:
    """The content of ``pg_ident.conf``: only these OS users may log in, as any role."""
    lines = ["# Written by pgdefect at every start."]
    lines += ['pgdefect "{}" all'.format(name.replace('"', '""')) for name in os_users]
    return "\n".join(lines) + "\n"


def quote_setting(value: str) -> str:
    """A value as a quoted string of ``postgresql.conf``, where a backslash escapes."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _quote_list_item(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def _megabytes(count: int) -> str:
    return f"{count // MIB}MB"


def parse_address(text: str) -> tuple[str, int]:
    """The host and port of ``HOST:PORT``; an empty text is an empty host."""
    if not text:
        return "", DEFAULT_PORT
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+):(\d{1,5})", text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise UsageError(
            f"the address to listen on must be HOST:PORT, such as 127.0.0.1:5433; got {text!r}"
        )
    return found[1].strip("[]"), int(found[2])


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
