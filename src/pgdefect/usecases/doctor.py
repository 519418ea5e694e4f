"""Check a database and its files: what is wrong, what it means, how to fix it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from sqlalchemy import Connection, text

from pgdefect.core.config import Settings
from pgdefect.core.errors import DatabaseError, PgdefectError, SchemaOutOfDate, UnsupportedServer
from pgdefect.core.file_claims import claim, remove_unclaimed
from pgdefect.core.wording import blank, command
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.doctor import contents, indexes, partitions, server
from pgdefect.db.doctor.findings import SEVERITIES, Finding, fix_command, size
from pgdefect.db.records.simulations import simulated_paths
from pgdefect.vision.networks.export_cache import EXPORTS
from pgdefect.vision.patchcore.patch_spool import KEPT_DAYS, leftovers

Check = Callable[[Connection], Iterator[Finding]]
CACHES = ("extractors", "networks")
"""Folders of the cache that keep networks."""
NAMED = 3
"""Files of one kind that a finding names."""


@dataclass(frozen=True)
class Fixed:
    """The outcome of a fix; error is None where it worked."""

    finding: Finding
    error: str | None


@dataclass(frozen=True)
class Examination:
    """Findings, faults first; server says which database was looked at."""

    database: str
    server: str
    findings: tuple[Finding, ...]
    fixed: tuple[Fixed, ...] = ()

    @property
    def faults(self) -> int:
        return sum(finding.severity == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Findings and repairs as plain values."""
        return {
            "database": self.database,
            "server": self.server,
            "ok": self.faults == 0,
            "findings": [finding.to_json() for finding in self.findings],
            "fixed": [{**one.finding.to_json(), "error": one.error} for one in self.fixed],
        }


def examine(
    database: Database,
    settings: Settings,
    *,
    fix: bool = False,
    thorough: bool = False,
    files: bool = False,
) -> Examination:
    """Run every check; with `fix`, fix what is safe to fix and check again.

    A check that this login may not make is a finding, not an error. Raises DatabaseUnavailable
    or AuthenticationFailed where there is no database to look at.

    Args:
        thorough: read large tables through as well.
        files: look for every image file, and for simulated pictures that no row names.
    """
    look = partial(_findings, database, settings, thorough=thorough, files=files)
    findings = look()
    fixed: list[Fixed] = []
    if fix:
        # What one repair uncovers, the next look finds. Each is tried once.
        tried: set[tuple[str, str]] = set()
        while todo := [f for f in findings if f.repair is not None and _key(f) not in tried]:
            for finding in todo:
                tried.add(_key(finding))
                fixed.append(Fixed(finding, _mend(database, finding)))
            findings = look()
        left = {_key(finding) for finding in findings}
        fixed = [
            replace(one, error=f"it is still there; {one.finding.keeps}")
            if one.error is None and _key(one.finding) in left
            else one
            for one in fixed
        ]
    order = {severity: n for n, severity in enumerate(SEVERITIES)}
    findings.sort(key=lambda finding: (order[finding.severity], finding.check, finding.subject))
    return Examination(database.safe_url, _versions(database), tuple(findings), tuple(fixed))


def _key(finding: Finding) -> tuple[str, str]:
    return finding.check, finding.subject


def _mend(database: Database, finding: Finding) -> str | None:
    assert finding.repair is not None
    try:
        finding.repair(database)
    except (PgdefectError, OSError) as error:
        return str(error)
    return None


def _findings(
    database: Database, settings: Settings, *, thorough: bool, files: bool
) -> list[Finding]:
    try:
        found = list(server.check_schema(database))
    except UnsupportedServer as error:
        return [Finding("fault", "server", "server", str(error), "see the message")]
    checks: list[Check] = [
        server.check_extension,
        server.check_memory,
        server.check_roles,
        server.check_log_settings,
        server.check_notifications,
        partitions.check_orphans,
        partitions.check_missing,
        partitions.check_hnsw,
        partitions.check_hnsw_definitions,
        indexes.check_invalid,
        indexes.check_unused,
        indexes.check_statistics,
        indexes.check_dead_rows,
        partial(contents.check_vectors, thorough=thorough),
        contents.check_lost_images,
        contents.check_detectors,
        contents.check_audit_trail,
        contents.check_outliers,
        contents.check_learned_defects,
        contents.check_missing_embeddings,
        contents.check_networks,
        contents.check_unused_extractors,
        partial(check_cached_networks, folder=settings.cache_dir),
        partial(check_leftover_files, folder=settings.cache_dir),
        check_roots,
        _check_machine,
    ]
    if files:
        checks += [check_image_files, partial(check_simulated, folder=settings.data_dir)]
    for check in checks:
        name = getattr(check, "func", check).__name__.removeprefix("_").removeprefix("check_")
        try:
            with database.connect() as connection:
                found += check(connection)
        except SchemaOutOfDate:
            # The schema's own finding reports it already.
            continue
        except DatabaseError as error:
            found.append(
                Finding("warning", "not-checked", name, str(error), "pgdefect doctor as the owner")
            )
    return found


# -- the machine ---------------------------------------------------------------------------


def _check_machine(connection: Connection) -> Iterator[Finding]:
    """Disk and shared memory, where the server runs on this machine and says where."""
    if not driver(connection).info.host.startswith("/"):
        return
    if (shared := _free("/dev/shm", total=True)) is not None:
        yield from server.check_shared_memory(connection, shared)
    allowed = connection.scalar(text("SELECT pg_has_role('pg_read_all_settings', 'USAGE')"))
    path = connection.scalar(text("SHOW data_directory")) if allowed else None
    if path is not None and (free := _free(path)) is not None:
        yield from server.check_disk(connection, path, free)
    if path is not None:
        yield from server.check_log(Path(path).parent / "server.log")


def _free(path: str, total: bool = False) -> int | None:
    try:
        volume = os.statvfs(path)
    except OSError:
        return None
    return (volume.f_blocks if total else volume.f_bavail) * volume.f_frsize


# -- files ---------------------------------------------------------------------------------


def check_cached_networks(connection: Connection, folder: Path) -> Iterator[Finding]:
    """Networks this machine keeps beside the database: damaged ones, and ones that can help.

    Where the database's own copy is broken, a good one here is put back by a repair.
    """
    rows = connection.execute(
        text("""
        SELECT 'extractor', id, onnx_sha256, encode(sha256(onnx), 'hex') = onnx_sha256
        FROM pgdefect.extractor
        UNION ALL
        SELECT 'detector', detector_id, onnx_sha256, encode(sha256(onnx), 'hex') = onnx_sha256
        FROM pgdefect.detector_model""")
    )
    for kind, number, digest, good in rows:
        path = folder / CACHES[kind != "extractor"] / f"{digest}.onnx"
        try:
            content = path.read_bytes()
        except OSError:
            continue
        intact = hashlib.sha256(content).hexdigest() == digest
        if not intact:
            yield Finding(
                "warning",
                "broken-cache",
                str(path),
                f"the copy of {kind} {number}'s network on this machine is damaged; it would be "
                "fetched again",
                fix_command(),
                lambda database, path=path: path.unlink(missing_ok=True),  # type: ignore[misc]
            )
        elif not good:
            yield Finding(
                "fault",
                "restorable-network",
                f"{kind} {number}",
                "this machine has a good copy of the network that the database has lost",
                fix_command(),
                partial(_put_back, kind=kind, number=number, content=content),
            )


def _put_back(database: Database, kind: str, number: int, content: bytes) -> None:
    table, key = ("extractor", "id") if kind == "extractor" else ("detector_model", "detector_id")
    with database.begin() as connection:
        driver(connection).execute(
            f"UPDATE pgdefect.{table} SET onnx = %(onnx)s WHERE {key} = %(id)s "
            "AND encode(sha256(%(onnx)s), 'hex') = onnx_sha256",
            {"onnx": content, "id": number},
        )


def check_leftover_files(connection: Connection, folder: Path) -> Iterator[Finding]:
    """Files in the cache that processes left which were killed: no living one holds them."""
    drafts = [
        (path, False) for kind in (*CACHES, EXPORTS) for path in (folder / kind).glob("*.part")
    ]
    for path, of_use in [*leftovers(folder), *drafts]:
        held = claim(path)
        if held is None:
            continue
        os.close(held)
        what = f"{size(_disk_usage(path))} left behind by a killed process"
        if of_use:
            yield Finding(
                "note",
                "leftover-files",
                str(path),
                f"{what}: patch embeddings that the same training reuses when it is run again "
                f"within {KEPT_DAYS} days",
                f"pgdefect train CATEGORY; or rm -r {quote(str(path))}",
            )
        else:
            yield Finding(
                "note",
                "leftover-files",
                str(path),
                what,
                fix_command(),
                lambda database, path=path: remove_unclaimed([path]),  # type: ignore[misc]
            )


def _disk_usage(path: Path) -> int:
    """Bytes that a file, or all in a folder, take on the disk."""
    total = 0
    for one in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):
            total += 512 * one.stat().st_blocks
    return total


def check_roots(connection: Connection) -> Iterator[Finding]:
    """Image folders that this machine does not see; one look for each."""
    rows = connection.execute(
        text("""
        SELECT r.path, count(i.id) FROM pgdefect.image_root r
        LEFT JOIN pgdefect.image i ON i.root_id = r.id AND i.retired_at IS NULL
        GROUP BY r.path ORDER BY r.path""")
    )
    for path, count in rows:
        if not count:
            continue
        if not os.path.isdir(path):
            yield Finding(
                "warning",
                "missing-folder",
                path,
                f"{count:,} images lie in it, and this machine does not have it",
                command("move-root", path, blank("NEW")),
            )


def check_image_files(connection: Connection) -> Iterator[Finding]:
    """Recorded images, and masks, whose file is gone from a folder that is there."""
    rows = connection.execute(
        text("""
        SELECT c.name, r.path, i.path, i.mask_path FROM pgdefect.image i
        JOIN pgdefect.category c ON c.id = i.category_id
        JOIN pgdefect.image_root r ON r.id = i.root_id
        WHERE i.retired_at IS NULL ORDER BY 1, 2, 3""")
    )
    gone: dict[tuple[str, str], list[str]] = {}
    there: dict[str, bool] = {}
    for category, root, path, mask in rows:
        if not there.setdefault(root, os.path.isdir(root)):
            continue
        for name in (path, mask):
            if name is not None and not os.path.lexists(os.path.join(root, name)):
                gone.setdefault((category, root), []).append(name)
    for (category, root), names in gone.items():
        yield Finding(
            "warning",
            "missing-files",
            root,
            f"{len(names):,} files of {category} are gone: {_some(names)}",
            command("ingest", root, category=category, accept_changes=True),
        )


def check_simulated(connection: Connection, folder: Path) -> Iterator[Finding]:
    """Pictures in the data directory's ``simulated`` that no row names."""
    known = simulated_paths(connection)
    orphans: list[str] = []
    place = folder / "simulated"
    for directory, _, names in os.walk(place):
        orphans += [path for name in names if (path := os.path.join(directory, name)) not in known]
    if orphans:
        yield Finding(
            "warning",
            "orphaned-files",
            str(place),
            f"{len(orphans):,} pictures belong to no simulated defect of this database: "
            f"{_some(sorted(orphans))}",
            f"ls {place}; then rm what no other database uses",
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (", …" if len(listed) > NAMED else "")


def _versions(database: Database) -> str:
    try:
        with database.connect() as connection:
            row = connection.execute(
                text(
                    "SELECT current_setting('server_version'), "
                    "(SELECT extversion FROM pg_extension WHERE extname = 'vector')"
                )
            ).one()
    except UnsupportedServer:
        return "not supported"
    return f"PostgreSQL {row[0].split()[0]}, pgvector {row[1] or 'missing'}"
