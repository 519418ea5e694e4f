"""`pgdefect doctor` as a user or a monitor meets it."""

from __future__ import annotations

from pgdefect.db.connection.engine import Database

from .conftest import Cli


def test_faults_end_with_exit_code_1_until_they_are_mended(
    trained: Database, cli: Cli, good: Cli
) -> None:
    assert good(trained, "doctor", "--json").json["ok"] is True
    with trained.autocommit() as connection:
        connection.execute("DROP INDEX pgdefect.memory_bank_patch_1_hnsw")
        connection.execute("UPDATE pgdefect.detector SET threshold = 3")
    result = cli(trained, "doctor")
    assert result.code == 1
    assert "fault: missing-hnsw: pgdefect.memory_bank_patch_1\n" in result.out
    assert "  Remedy: pgdefect doctor --fix\n" in result.out
    assert result.err.startswith("PostgreSQL 18")
    report = cli(trained, "doctor", "--fix", "--json").json
    assert report["ok"] is False
    assert [(one["check"], one["error"]) for one in report["fixed"]] == [("missing-hnsw", None)]
    [fault] = [one for one in report["findings"] if one["severity"] == "fault"]
    assert (fault["check"], fault["fixable"]) == ("threshold-differs", False)
    assert fault["subject"] == "detector 1 of parts"
    program, *words = fault["remedy"].split()
    assert program == "pgdefect"
    good(trained, *words)
    assert good(trained, "doctor", "--json").json["ok"] is True


def test_warnings_are_no_faults(trained: Database, good: Cli) -> None:
    with trained.autocommit() as connection:
        connection.execute("UPDATE pgdefect.image_root SET path = '/nowhere/at/all'")
    result = good(trained, "doctor")
    assert "warning: missing-folder: /nowhere/at/all\n" in result.out
    assert "  Remedy: pgdefect move-root /nowhere/at/all NEW\n" in result.out


def test_a_database_without_the_schema_is_told_what_it_needs(
    empty_database: Database, cli: Cli, good: Cli
) -> None:
    result = cli(empty_database, "doctor")
    assert result.code == 1
    assert "Remedy: pgdefect db upgrade\n" in result.out
    good(empty_database, "db", "upgrade")
    good(empty_database, "doctor")


def test_no_database_is_an_error_not_a_finding(cli: Cli) -> None:
    result = cli(Database("postgresql://nobody@/x?host=/nowhere/at/all"), "doctor")
    assert result.code == 1
    assert "no database at" in result.error
