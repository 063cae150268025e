"""An app that tells its load balancer whether it may take traffic. Needs the wheel, and Flask."""

import os
from pathlib import Path

from flask import Flask

from readygate import health

UPLOADS = Path(os.environ.get("UPLOADS", "/tmp"))


def uploads_are_gone() -> str | None:
    return None if UPLOADS.is_dir() else f"{UPLOADS} is not there"


app = Flask(__name__)
app.register_blueprint(health.blueprint(ready={"uploads": uploads_are_gone}))


@app.get("/")
def index() -> str:
    return "welcome"
