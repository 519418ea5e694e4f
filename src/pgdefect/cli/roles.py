"""``pgdefect db role``: who may read and who may write."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, note, print_json, print_table
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from pgdefect.db.access.grants import Kind
    from pgdefect.db.access.roles import SetupReport

PASSWORD_VARIABLE = "PGDEFECT_ROLE_PASSWORD"

app = typer.Typer(
    help="Logins that only read (analysts) or add inspections (line stations).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="The login's name.")]


def _setup(context: typer.Context) -> SetupReport:
    from pgdefect.db.access.roles import setup

    here = current(context)
    return setup(here.database, whole_server=here.settings.database_url is None)


@app.command("setup", epilog="Example:  pgdefect db role setup")
def setup_command(context: typer.Context, json: Json = False) -> None:
    """Make the roles reader and writer of this database, and what they may do.

    `role add` does this by itself. What this login may not do is printed as SQL for an
    administrator, with exit code 1; run it again afterwards.
    """
    report = _setup(context)
    if json:
        print_json(report)
    else:
        note(
            f"owner {report.owner}, writer {report.writer}, reader {report.reader}: "
            f"{len(report.done)} statements run"
        )
        for statement in report.for_administrator:
            typer.echo(f"{statement};")
        _say_what_is_left(report)
    if report.for_administrator:
        raise typer.Exit(1)
    if not json:
        typer.echo("roles are complete")


def _say_what_is_left(report: SetupReport) -> None:
    if report.for_administrator:
        note(
            f"This login may not run {len(report.for_administrator)} statements. Have an "
            f"administrator run them in the database {report.database}, then run: "
            "pgdefect db role setup"
        )
    if report.open_databases:
        note(
            "Any login may also make temporary tables in these databases of the server, which no "
            f"limit bounds: {', '.join(report.open_databases)}. An administrator stops that with "
            "REVOKE CONNECT, TEMPORARY ON DATABASE … FROM PUBLIC"
        )


@app.command("add", epilog="Example:  pgdefect db role add analyst --reader --generate")
def add_command(
    context: typer.Context,
    name: Name,
    reader: Annotated[bool, typer.Option("--reader", help="It may look at everything.")] = False,
    writer: Annotated[
        bool, typer.Option("--writer", help="It may also ingest, inspect and review.")
    ] = False,
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a password and print it, this once.")
    ] = False,
    no_password: Annotated[
        bool,
        typer.Option("--no-password", help="It proves itself otherwise: certificate, peer, LDAP."),
    ] = False,
    connections: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Sessions at a time; 10 for a reader, 20 for a writer."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a login that is a reader or a writer.

    The password is asked for, or taken from the variable PGDEFECT_ROLE_PASSWORD; it is no
    option, because options are seen in process lists and shell histories.
    """
    from pgdefect.db.access.logins import add_login, check_name

    if reader == writer:
        raise UsageError("say what the login is to be: --reader or --writer")
    check_name(name)
    kind: Kind = "reader" if reader else "writer"
    password = _password(name, generate, no_password)
    here = current(context)
    prepared = _setup(context)
    report = None
    if not any(s.startswith("CREATE ROLE") for s in prepared.for_administrator):
        report = add_login(here.database, name, kind, password, connection_limit=connections)
    left = [*prepared.for_administrator, *(report.for_administrator if report else ())]
    made = report is not None and report.made
    if json:
        shown = password if generate and made else None
        print_json(
            {
                "name": name,
                "kind": kind,
                "made": made,
                "password": shown,
                "url": _url(context, name),
                "for_administrator": left,
            }
        )
    else:
        for statement in left:
            typer.echo(statement if statement.startswith("\\") else f"{statement};")
        if made:
            typer.echo(f"{name} is a {kind} of {prepared.database}")
            if generate:
                typer.echo(f"password: {password}")
            note(f"It connects with {_url(context, name)}")
        if left:
            note(
                "This login may not run the statements above. Have an administrator run them with "
                f"psql in the database {prepared.database}"
                + (", then run this again." if report is None else ".")
            )
        _say_how_it_connects(context)
    if left:
        raise typer.Exit(1)


@app.command("list", epilog="Example:  pgdefect db role list")
def list_command(context: typer.Context, json: Json = False) -> None:
    """List the owner, and who reads and writes, with their limits."""
    from pgdefect.db.access.logins import list_logins

    found = list_logins(current(context).database)
    if json:
        print_json(found)
        return
    print_table(
        ("role", "kind", "login", "sessions", "limit", "temporary files", "timeout", "beyond"),
        [
            (
                one.name,
                one.kind,
                one.can_login,
                one.connections,
                one.connection_limit,
                one.temp_file_limit,
                one.statement_timeout,
                ", ".join(one.beyond) or None,
            )
            for one in found
        ],
    )
    if len(found) == 1:
        note("only the owner may use this database; add others with: pgdefect db role add")


@app.command("drop", epilog="Example:  pgdefect db role drop analyst")
def drop_command(context: typer.Context, name: Name) -> None:
    """Drop a reader's or writer's login and end its sessions."""
    from pgdefect.db.access.logins import drop_login

    left = drop_login(current(context).database, name)
    typer.echo(f"{name} is dropped")
    if left:
        note(f"{left} of its sessions stay open until they end; an administrator can end them")


def _password(name: str, generate: bool, no_password: bool) -> str | None:
    given = os.environ.get(PASSWORD_VARIABLE)
    if generate + no_password + (given is not None) > 1:
        raise UsageError(
            f"name one source of the password: --generate, --no-password or {PASSWORD_VARIABLE}"
        )
    if no_password:
        return None
    if generate:
        import secrets

        return secrets.token_urlsafe(24)
    if given is None:
        if not sys.stdin.isatty():
            raise UsageError(
                f"there is no terminal to ask for the password on; set {PASSWORD_VARIABLE}, or "
                "use --generate or --no-password"
            )
        given = typer.prompt(
            f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True
        )
    return given


def _url(context: typer.Context, name: str) -> str:
    """Where the login connects to, without a password."""
    here = current(context)
    url = here.database.safe_url
    if here.settings.database_url is None:
        from pgdefect.db.server.embedded import EmbeddedServer

        server = EmbeddedServer(here.settings.data_dir)
        if server.status().listen is not None:
            url = server.url(with_password=True)
    rest = url.removeprefix("postgresql://")
    login, at, address = rest.partition("@")
    return f"postgresql://{quote(name, safe='')}@{address if at and '/' not in login else rest}"


def _say_how_it_connects(context: typer.Context) -> None:
    here = current(context)
    if here.settings.database_url is not None:
        return
    from pgdefect.db.server.embedded import EmbeddedServer

    if EmbeddedServer(here.settings.data_dir).status().listen is None:
        note(
            "The embedded server takes no TCP connections now: only the operating system's user "
            "who runs it reaches it, as any role, the owner too, and without a password. For "
            "others: pgdefect db up --listen HOST:PORT"
        )
