"""`make audit` never passes in silence: what cannot be looked up is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.__main__ import KNOWN, main

ONE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.11"]}
CLEAN = {"name": "pillow", "version": "13.0.0", "vulns": []}
OLD = {"name": "jinja2", "version": "2.10", "vulns": [ONE]}


@pytest.fixture
def pip_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program in pip-audit's place that answers so about the known one, and the rest."""

    def put(known: object, rest: object, code: int = 0) -> list[str]:
        for name, answer in (("known", known), ("rest", rest)):
            text = answer if isinstance(answer, str) else json.dumps({"dependencies": answer})
            (tmp_path / name).write_text(text)
        program = tmp_path / "pip-audit"
        program.write_text(
            f'#!/bin/sh\nif grep -q "{KNOWN}" "$2"; then cat {tmp_path}/known\n'
            f"else cat {tmp_path}/rest; fi\necho 'cannot connect' >&2\nexit {code}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        (tmp_path / "pins.txt").write_text("pillow==13.0.0\n")
        return [str(tmp_path / "pins.txt")]

    return put


def test_advisories_fail_it(pip_audit, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pip_audit([OLD], [CLEAN])) == 0
    assert main(pip_audit([OLD], [CLEAN, {**CLEAN, "vulns": [ONE]}], code=1)) == 1
    assert "pillow 13.0.0: PYSEC-1 (CVE-1); mended in 2.11" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "rest"),
    [
        ("", ""),  # no network: an error and no report
        ([{**OLD, "vulns": []}], [CLEAN]),  # a mirror without advisories
        ([{"name": "jinja2", "skip_reason": "not found"}], [CLEAN]),
        ([OLD], [CLEAN, {"name": "torch", "skip_reason": "not found"}]),
        ([OLD], []),
        ([OLD], "<html>"),
    ],
)
def test_what_cannot_be_looked_up_is_no_success(
    pip_audit, capsys: pytest.CaptureFixture[str], known: object, rest: object
) -> None:
    arguments = pip_audit(known, rest, code=1)
    assert main(arguments) == 3
    assert "NOT AUDITED: no advisories can be had here" in capsys.readouterr().err
    assert main(["--unless-unreachable", *arguments]) == 0
    assert "NOT AUDITED" in capsys.readouterr().err


def test_without_pip_audit_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([]) == 3
    assert "pip-audit is not installed" in capsys.readouterr().err
