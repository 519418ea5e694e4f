"""``pgdefect stats``: the costliest statements, from pg_stat_statements."""

from __future__ import annotations

from pathlib import Path

import psycopg

from pgdefect.db.connection.engine import Database

from .conftest import Cli


def test_statements_are_counted(good: Cli, cli: Cli, trained: Database, parts: Path) -> None:
    refused = cli(trained, "stats")
    assert refused.code == 1
    assert "CREATE EXTENSION pg_stat_statements" in refused.error
    with psycopg.connect(trained.url) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
    good(trained, "stats", "--reset")
    for _ in range(3):
        good(trained, "inspect", parts / "test" / "chip", "--category", "parts")
    with psycopg.connect(trained.url) as connection:
        connection.execute("SELECT count(*) FROM pg_class")  # nothing of ours
    report = good(trained, "stats", "--json").json
    found = report["statements"]
    assert [one["total_ms"] for one in found] == sorted(
        (one["total_ms"] for one in found), reverse=True
    )
    [written] = [
        one for one in found if one["query"].startswith("INSERT INTO pgdefect.inspection (")
    ]
    assert written["rows"] == 9
    assert all("pgdefect." in one["query"] or "defect." in one["query"] for one in found)
    for one in found:
        assert one["mean_ms"] * one["calls"] == abs(one["total_ms"]) or one["calls"] > 1
        assert one["hit_share"] is None or 0 <= one["hit_share"] <= 1
    printed = good(trained, "stats", "--limit", 2, "--full")
    assert len(printed.out.partition("\n\n")[0].splitlines()) == 4
    assert found[0]["query"] in printed.out
    assert f"counted since {report['since']}" in printed.err
    good(trained, "stats", "--reset")
    after = good(trained, "stats", "--json").json
    assert not any("INSERT INTO pgdefect.inspection" in one["query"] for one in after["statements"])


def test_the_embedded_server_has_it(good: Cli, cli: Cli, place: Path) -> None:
    here = ("--data-dir", place / "data")
    good(None, *here, "db", "up")
    good(None, *here, "categories")
    assert "pgdefect.category" in good(None, *here, "stats", "--full").out
    # One that was not started with it says how to have it.
    settings = place / "data" / "postgres" / "user.conf"
    before = settings.read_text()
    settings.write_text(before + "shared_preload_libraries = ''\n")
    good(None, *here, "db", "down")
    good(None, *here, "db", "up")
    assert "pgdefect db down" in cli(None, *here, "stats").error
    settings.write_text(before)
    good(None, *here, "db", "down")
