"""The shop's own history, with the table of replicas in it."""

from alembic import context

from app import app, db
from readygate import replicas

with app.app_context(), db.engine.begin() as connection:
    context.configure(connection=connection, target_metadata=[db.metadata, replicas.metadata])
    context.run_migrations()
