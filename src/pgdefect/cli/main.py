"""The application: global options, commands, and the one place errors are shown."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from pgdefect.cli import (
    catalog,
    database,
    demo,
    detectors,
    doctor,
    embed,
    evaluation,
    exchange,
    inspection,
    logs,
    recall,
    retention,
    review,
    search,
    simulation,
    stats,
    thresholds,
    training,
)
from pgdefect.cli.context import Context
from pgdefect.cli.output import visible
from pgdefect.cli.renamed import current_names
from pgdefect.cli.spelling import CommandLine
from pgdefect.cli.version import version_lines
from pgdefect.core.errors import PgdefectError, UsageError
from pgdefect.core.wording import speaking

INTERRUPTED = 130
_WITH_VALUE = ("--database-url", "--data-dir", "--log-format")

app = typer.Typer(
    name="pgdefect",
    help="Visual defect inspection that lives in Postgres.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(database.app, name="db")
demo.register(app)
catalog.register(app)
training.register(app)
detectors.register(app)
inspection.register(app)
search.register(app)
embed.register(app)
recall.register(app)
thresholds.register(app)
evaluation.register(app)
review.register(app)
retention.register(app)
simulation.register(app)
exchange.register(app)
doctor.register(app)
stats.register(app)


@app.callback(epilog="Example:  pgdefect demo", invoke_without_command=True)
def _options(
    context: typer.Context,
    database_url: Annotated[
        str | None,
        typer.Option(
            help="Use this Postgres instead of the embedded one.",
            envvar="PGDEFECT_DATABASE_URL",
            show_envvar=True,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the embedded Postgres keeps its data.", envvar="PGDEFECT_DATA_DIR"
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="text|json",
            help="Log on stderr, a line for each inspection with its stages' times. With json "
            "notes and errors are objects, too.",
            envvar="PGDEFECT_LOG_FORMAT",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version; of a server that runs, its versions and the schema's, too.",
        ),
    ] = False,
) -> None:
    if version:
        for line in version_lines(database_url, data_dir):
            typer.echo(visible(line))
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.fail("Missing command.")
    if log_format not in (None, *logs.FORMATS):
        raise UsageError(f"--log-format is text or json, not {log_format!r}")
    logs.set_up(log_format)
    context.obj = Context(database_url, data_dir)
    context.call_on_close(context.obj.close)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exits with 0, 1 (an error), 2 (wrong usage) or 130 (interrupted)."""
    sys.unraisablehook = keep_interrupt
    # Of damaged metadata, which pixels do not depend on. Set once: the filters are the process's,
    # and images are decoded in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def keep_interrupt(lost: sys.UnraisableHookArgs) -> None:
    """Interrupt again where Ctrl-C was lost in a callback, of the import system for one, that
    can raise nothing; other errors of the kind are reported as ever.
    """
    if issubclass(lost.exc_type, KeyboardInterrupt):
        # Not from here: it would be lost in this very hook.
        again = threading.Timer(0.01, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    with speaking(CommandLine()):
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    verbose = any(a in ("-v", "--verbose") for a in _before_command(arguments))
    try:
        logs.set_up(None)
        result: Any = app(current_names(arguments), prog_name="pgdefect", standalone_mode=False)
        if result == INTERRUPTED:  # typer has caught it
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except PgdefectError as error:
        return _say(str(error), error.exit_code, verbose)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; nothing half-done was stored", INTERRUPTED, verbose)
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "show"):  # typer's usage errors
            code = int(getattr(error, "exit_code", 2))
            if not logs.said("error", error.format_message(), error=True, exit_code=code):
                error.show()
            return code
        if isinstance(error, UnicodeEncodeError):
            return _say(f"{error.object!r} is not valid UTF-8; rename it", 2, verbose)
        what = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        first_line = (what.splitlines() or [type(error).__name__])[0]
        return _say(f"{first_line}. Run with --verbose to see where", 1, verbose)


def _say(message: str, code: int, verbose: bool) -> int:
    """Report the error that is being handled; returns its exit code."""
    trace = {"traceback": traceback.format_exc()} if verbose else {}
    if not logs.said("error", message, error=True, exit_code=code, **trace):
        if verbose:
            traceback.print_exc()
        typer.echo(f"pgdefect: {visible(message, keep=chr(10))}", err=True)
    return code


def _before_command(arguments: list[str]) -> list[str]:
    """The global options: everything up to the first word that is none."""
    end = 0
    while end < len(arguments) and arguments[end].startswith("-"):
        end += 2 if arguments[end] in _WITH_VALUE else 1
    return arguments[:end]
