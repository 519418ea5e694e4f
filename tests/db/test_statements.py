"""What pg_stat_statements keeps, and who may read and reset it."""

from __future__ import annotations

import pytest
from guarded import as_login, roles_of
from sqlalchemy import text

from pgdefect.core.errors import PermissionDenied
from pgdefect.db.access.logins import add_login
from pgdefect.db.connection.engine import Database
from pgdefect.db.doctor.slow_statements import costliest, reset


def test_passwords_are_not_kept_and_a_reader_sees_its_own(database: Database) -> None:
    assert costliest(database, 10, make_extension=True).since
    with database.begin() as connection:
        # Where thousands are kept, of all databases, the next may push out what this looks for.
        connection.execute(text("SELECT pg_stat_statements_reset()"))
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))
    with roles_of(database, looker="reader"):
        add_login(database, "secretive", "reader", "s3cret word")
        with database.connect() as connection:
            connection.execute(text("SELECT count(*) FROM pgdefect.review"))
            kept = connection.scalars(text("SELECT query FROM pg_stat_statements")).all()
        assert any("CREATE EXTENSION" in query for query in kept)  # statements like it are counted
        assert not [query for query in kept if "SCRAM" in query or "s3cret" in query]
        reader = as_login(database, "looker")
        with reader.connect() as connection:
            connection.execute(text("SELECT count(*) FROM pgdefect.category"))
        report = costliest(reader, 100)
        assert [one.query for one in report.statements] == [
            "SELECT count(*) FROM pgdefect.category"
        ]
        assert report.hidden > 0
        with pytest.raises(PermissionDenied, match="GRANT EXECUTE"):
            reset(reader)
        reader.dispose()
