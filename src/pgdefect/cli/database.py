"""``pgdefect db``: the embedded server and the schema."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli import roles
from pgdefect.cli.context import current
from pgdefect.cli.output import Json, note, print_json, progress_bars
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from pgdefect.db.connection.engine import Database
    from pgdefect.db.server.embedded import EmbeddedServer

app = typer.Typer(
    help="The database: embedded server and schema.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.add_typer(roles.app, name="role")


def _server(context: typer.Context) -> EmbeddedServer:
    from pgdefect.db.server.embedded import EmbeddedServer

    settings = current(context).settings
    if settings.database_url is not None:
        raise UsageError(
            "this command is about the embedded server, and a database URL is set; "
            "unset PGDEFECT_DATABASE_URL or leave out --database-url"
        )
    return EmbeddedServer(settings.data_dir)


@app.command("up", epilog="Example:  pgdefect db up")
def up_command(
    context: typer.Context,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Also listen on TCP, with a password; data travels unencrypted.",
        ),
    ] = None,
) -> None:
    """Start the embedded Postgres and bring its schema up to date.

    Without --listen it takes no TCP connections, also if it did before.
    """
    server = _server(context)
    status = server.start(listen=listen or "")
    current(context).database.dispose()
    note(f"{status.change}: PostgreSQL {status.version} in {status.data_dir}")
    if listen:
        note("The connection is not encrypted; keep it inside a network you trust.")
        note("Give others a login of their own: pgdefect db role add NAME --reader")
    typer.echo(server.url(tcp=bool(listen)))


@app.command("down", epilog="Example:  pgdefect db down")
def down_command(context: typer.Context) -> None:
    """Stop the embedded Postgres."""
    note("stopped" if _server(context).stop() else "it was not running")


@app.command("status", epilog="Example:  pgdefect db status --json")
def status_command(context: typer.Context, json: Json = False) -> None:
    """Say whether the embedded Postgres runs, and where."""
    found = _server(context).status()
    if json:
        print_json(found)
        return
    typer.echo(f"running:    {'yes' if found.running else 'no'}")
    typer.echo(f"data:       {found.data_dir}")
    if found.running:
        typer.echo(f"server:     PostgreSQL {found.version}, process {found.pid}")
        typer.echo(f"socket:     {found.socket_dir}")
        typer.echo(f"TCP:        {found.listen or 'no'}")
        typer.echo(f"started:    {found.started_at}")
    typer.echo(f"log:        {found.log_file}")


@app.command("url", epilog='Example:  psql "$(pgdefect db url)"')
def url_command(
    context: typer.Context,
    password: Annotated[
        bool, typer.Option("--password", help="With the password, where there is one.")
    ] = False,
) -> None:
    """Print the database's URL, without a password unless asked."""
    if current(context).settings.database_url is not None:
        secret = current(context).settings.database_url
        database = current(context).database
        typer.echo(secret.get_secret_value() if password and secret else database.safe_url)
        return
    server = _server(context)
    server.start()
    typer.echo(server.url(with_password=password))


@app.command(
    "psql",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example:  pgdefect db psql -- -c 'SELECT * FROM defect.categories'",
)
def psql_command(context: typer.Context) -> None:
    """Open psql on the database; further arguments after -- are passed on."""
    database = current(context).database
    from pgdefect.db.server.embedded import EmbeddedServer

    settings = current(context).settings
    bundled = str(EmbeddedServer(settings.data_dir).bin_dir / "psql")
    choices = [shutil.which("psql"), shutil.which(bundled)]
    found = [c for c in (choices if settings.database_url else reversed(choices)) if c is not None]
    if not found:
        raise UsageError("no psql found; install the package postgresql-client")
    program = _of_server(database, found) if settings.database_url else found[0]
    environment = dict(os.environ)
    # A password in an argument would show in the process list.
    from psycopg.conninfo import conninfo_to_dict

    if (password := conninfo_to_dict(database.url).get("password")) is not None:
        environment["PGPASSWORD"] = str(password)
    database.dispose()
    os.execve(program, ["psql", database.safe_url, *context.args], environment)


def _of_server(database: Database, programs: list[str]) -> str:
    """The psql of the server's version; another's \\d and \\df may not work on it.

    Else the oldest that is newer, else the newest; the first where the server does not answer.
    """
    from pgdefect.core.errors import DatabaseError
    from pgdefect.db.backup.client_programs import major_version
    from pgdefect.db.connection.engine import driver

    if len(programs) < 2:
        return programs[0]
    try:
        with database.connect() as connection:
            server = driver(connection).info.server_version // 10000
    except DatabaseError:
        return programs[0]
    versions = {program: major_version(Path(program)) or 0 for program in programs}
    enough = [program for program in programs if versions[program] >= server]
    if enough:
        return min(enough, key=versions.__getitem__)
    return max(programs, key=versions.__getitem__)


@app.command("backup", epilog="Example:  pgdefect db backup pgdefect.dump")
def backup_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    json: Json = False,
) -> None:
    """Write all that pgdefect keeps in the database into one file.

    That is categories, what is known of each image, networks, memory banks, inspections,
    reviews. Photographs and simulated pictures are not in it: copy their folders, which are
    listed. The file has pg_dump's custom format, and is whole or not there.
    """
    from pgdefect.db.backup.backup import backup

    here = current(context)
    with progress_bars() as progress:
        report = backup(
            here.bare_database,
            file,
            force=force,
            bundled_first=here.settings.database_url is None,
            progress=progress,
        )
    if json:
        print_json(report)
        return
    typer.echo(
        f"{report.path}: {report.num_bytes:,} bytes, {report.num_tables} tables at revision "
        f"{report.revision}"
    )
    if report.folders:
        note("Photographs are not in it. Keep copies of these folders as well:")
        for folder in report.folders:
            note(f"  {folder}")


@app.command("restore", epilog="Example:  pgdefect db restore pgdefect.dump")
def restore_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What pgdefect db backup wrote.")],
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Instead of what the database has now, which is then gone for good."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Put a backup into a database that has none of pgdefect's rows yet.

    All of it or nothing: a restoration that fails or is killed leaves the database as it was,
    and can be run again. A backup of an older pgdefect is upgraded. Photographs are not in it:
    after moving them, pgdefect move-root says where they are now. Restore only what you trust;
    the file is SQL that runs with your rights.
    """
    from pgdefect.db.backup.restore import restore

    here = current(context)
    with progress_bars() as progress:
        report = restore(
            here.bare_database,
            file,
            replace=replace,
            bundled_first=here.settings.database_url is None,
            progress=progress,
        )
    if json:
        print_json(report)
        return
    rows = sum(report.num_rows.values())
    typer.echo(
        f"{report.path}: {rows:,} rows in {len(report.num_rows)} tables, "
        f"{report.num_indexes} indexes"
    )
    if report.revision_before != report.revision:
        typer.echo(f"revision {report.revision_before} -> {report.revision}")
    if report.replaced:
        note("What the database had before is gone.")


@app.command("upgrade", epilog="Example:  pgdefect db upgrade")
def upgrade_command(context: typer.Context, json: Json = False) -> None:
    """Create or update tables, functions and views, then build indexes that are not there.

    The first is all or nothing. Large indexes are built afterwards, while others keep reading
    and writing; if that is interrupted, run the same command again.
    """
    from pgdefect.db.schema.schema import upgrade

    with progress_bars() as progress:
        report = upgrade(current(context).bare_database, progress=progress)
    if json:
        print_json(report)
        return
    if report.revision_before == report.revision and not report.sql_files:
        typer.echo(f"up to date at revision {report.revision}")
    else:
        before = report.revision_before or "nothing"
        typer.echo(f"revision {before} -> {report.revision}, {len(report.sql_files)} SQL files")
    if report.indexes:
        typer.echo(f"built: {', '.join(report.indexes)}")


@app.command("check", epilog="Example:  pgdefect db check")
def check_command(context: typer.Context, json: Json = False) -> None:
    """Say whether database and code agree; exit code 1 if they do not."""
    from pgdefect.db.schema.schema import check

    report = check(current(context).bare_database)
    if json:
        print_json(report)
    elif report.ok:
        typer.echo(f"database and code agree, at revision {report.revision}")
    else:
        for difference in report.differences:
            typer.echo(difference)
        note("Remedy: pgdefect db upgrade")
    if not report.ok:
        raise typer.Exit(1)
