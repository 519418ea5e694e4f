"""``--log-format``: lines for machines on stderr, and stdout as ever."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from pgdefect.db.connection.engine import Database

from .conftest import Cli, Result

STAGES = ("decode_ms", "extract_ms", "search_ms", "store_ms")


def events(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.err.splitlines()]


def test_each_inspection_is_a_line_with_its_times(
    good: Cli, cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken image.png"
    broken.write_bytes(b"no image")
    command = ("inspect", parts / "test" / "chip", broken, "--category", "parts", "--json")
    plain = cli(trained, *command)
    logged = cli(trained, "--log-format", "json", *command)
    assert logged.code == plain.code == 1
    assert {**logged.json, "inspections": []} == {**plain.json, "inspections": []}
    found = events(logged)
    assert all(list(event)[:3] == ["time", "level", "event"] for event in found)
    inspected = [event for event in found if event["event"] == "inspected"]
    assert len(inspected) == 3
    for event, item in zip(inspected, logged.json["inspections"], strict=True):
        for name in ("path", "image_id", "inspection_id", "detector_id", "verdict", "raw_score"):
            assert event[name] == item[name]
        assert event["level"] == "info"
        assert all(isinstance(event[stage], float) and event[stage] > 0 for stage in STAGES)
    [unreadable] = [event for event in found if event["event"] == "unreadable"]
    assert (unreadable["level"], unreadable["path"]) == ("warning", str(broken))
    # What is a note for people without the option is an object with it.
    notes = [event["message"] for event in found if event["event"] == "note"]
    assert notes == [line for line in plain.err.splitlines() if line]


def test_lines_of_text_stand_beside_the_notes(
    good: Cli, trained: Database, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = parts / "test" / "chip" / "000.png"
    monkeypatch.setenv("PGDEFECT_LOG_FORMAT", "text")
    result = good(trained, "inspect", image, "--category", "parts")
    line, note = result.err.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 INFO inspected category=parts ", line)
    assert f" path={image} " in line
    assert re.search(r" decode_ms=[\d.]+ extract_ms=[\d.]+ search_ms=[\d.]+ store_ms=", line)
    assert note == "1 of 1 images are anomalous"
    monkeypatch.delenv("PGDEFECT_LOG_FORMAT")
    quiet = good(trained, "inspect", image, "--category", "parts")
    assert quiet.err == f"{note}\n"
    assert quiet.out == result.out


def test_errors_are_objects_too(cli: Cli, trained: Database) -> None:
    for arguments, code in ((("search", "nothing"), 1), (("search", "--frob"), 2)):
        result = cli(trained, "--log-format", "json", *arguments)
        assert (result.code, result.out) == (code, "")
        [event] = events(result)
        assert (event["level"], event["event"], event["exit_code"]) == ("error", "error", code)
        assert event["message"]
        assert "traceback" not in event
    trace = cli(trained, "--verbose", "--log-format", "json", "search", "nothing")
    [event] = events(trace)
    assert "Traceback" in str(event["traceback"])
    assert "text or json" in cli(trained, "--log-format", "xml", "categories").error


def test_programs_read_the_same_events(
    trained: Database, parts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pgdefect.core.config import Settings
    from pgdefect.usecases.inspect.inspect import inspect

    with caplog.at_level(logging.INFO, "pgdefect"):
        inspect(trained, Settings(), "parts", [parts / "test" / "good"])
    assert [record.getMessage() for record in caplog.records] == ["inspected"] * 4
    assert {record.fields["verdict"] for record in caplog.records} <= {"normal", "anomalous"}  # type: ignore[attr-defined]
