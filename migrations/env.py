"""Runs the migrations on the connection that schema.upgrade() hands over, inside its transaction."""

from alembic import context

import auth
import entitlements
import replicas
import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[replicas.metadata, entitlements.metadata, auth.metadata],
    version_table=schema.VERSION_TABLE,
    # The transaction is the caller's: it holds the lock that lets one replica migrate and the others wait.
    transactional_ddl=False,
)
context.run_migrations()
