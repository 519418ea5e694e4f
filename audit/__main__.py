"""python -m audit [--unless-unreachable] [FILE...]

Asks pip-audit for advisories on the pinned versions of FILE (constraints.txt). First it asks for
one that is known to be there: a mirror that serves no advisories looks, to pip-audit, like a clean
bill of health. Exit code 0: none is known; 1: there are some; 3: nobody could be asked, which
--unless-unreachable says and lets pass.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KNOWN = "jinja2==2.10"
"""A version with advisories that are not going to be withdrawn (CVE-2019-10906, for one)."""
NONE_KNOWN, SOME, UNREACHABLE = 0, 1, 3


class Unreachable(Exception):
    """No advisories are to be had here; the text says what was answered instead."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, default=[Path("constraints.txt")])
    parser.add_argument("--unless-unreachable", action="store_true")
    args = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "known.txt"
            known.write_text(KNOWN + "\n")
            if not _advisories(known):
                raise Unreachable(f"no advisory on {KNOWN}, which has some")
        found = [advisory for file in args.files for advisory in _advisories(file)]
    except Unreachable as error:
        print(f"NOT AUDITED: no advisories can be had here: {error}", file=sys.stderr)
        if args.unless_unreachable:
            print("Run `make audit` where the advisories can be reached.", file=sys.stderr)
            return NONE_KNOWN
        return UNREACHABLE
    for line in found:
        print(line)
    print(f"{len(found)} known advisories on {', '.join(map(str, args.files))}")
    return SOME if found else NONE_KNOWN


def _advisories(file: Path) -> list[str]:
    """A line for each advisory on a pinned version. Raises Unreachable."""
    program = shutil.which("pip-audit")
    if program is None:
        raise Unreachable("pip-audit is not installed; `make audit` installs it")
    # Every version is in the file already: pip is not asked to resolve anything.
    options = ["--no-deps", "--disable-pip", "--strict", "--format", "json", "--desc", "off"]
    command = [program, "--requirement", str(file), *options, "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
        dependencies = report["dependencies"]
        # Told from a failure by what it prints: its exit code is the same.
        skipped = [d["name"] for d in dependencies if "vulns" not in d]
    except (ValueError, LookupError, TypeError):
        told = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unreachable(told[-1] if told else f"pip-audit ended with {done.returncode}") from None
    if skipped or not dependencies:
        raise Unreachable(f"nothing is known of {', '.join(skipped) or 'any package'}")
    return [
        f"{d['name']} {d['version']}: {v['id']} ({', '.join(v['aliases']) or 'no other name'}); "
        f"mended in {', '.join(v['fix_versions']) or 'no version yet'}"
        for d in dependencies
        for v in d["vulns"]
    ]


if __name__ == "__main__":
    sys.exit(main())
