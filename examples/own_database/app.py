"""A shop on Flask-SQLAlchemy and psycopg that is a replica among others. Needs the wheel's extra `replicas`."""

import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from readygate import health, replicas
from readygate.replicas import gunicorn

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
# Seconds and milliseconds, as psycopg takes them: without them it waits for ever for a host that is gone.
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"connect_timeout": 5, "tcp_user_timeout": 5000}}
db = SQLAlchemy(app)

with app.app_context():
    membership = replicas.Membership(db.engine, replica_id=gunicorn.replica_id, version="1.0")
app.extensions["readygate"] = membership
checks = health.disclosed(database=membership.database_reason, replica=membership.reason)
app.register_blueprint(health.blueprint(measured=checks, start=membership.start))


class Book(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200))


@app.get("/books")
def books() -> list[str]:
    return list(db.session.scalars(db.select(Book.title)))
