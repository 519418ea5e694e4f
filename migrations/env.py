"""Alembic's entry point; `pgdefect.db.schema.schema` hands over the open connection."""

from __future__ import annotations

from alembic import context

from pgdefect.db.schema.models import Base
from pgdefect.db.schema.names import SCHEMA
from pgdefect.db.schema.schema import is_ours

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=lambda name, kind, parents: kind != "schema" or name == SCHEMA,
    include_object=is_ours,
    transaction_per_migration=False,
)
context.run_migrations()
