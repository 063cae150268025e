"""Hosts that lock every door: what probes need of them. And what docs/reusing.md shows, run as it stands there."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, redirect, request
from flask.typing import ResponseReturnValue
from servers import ROOT, until
from sqlalchemy import create_engine

import auth
import entitlements
import health
import replicas

PAGE = (ROOT / "docs" / "reusing.md").read_text(encoding="utf-8")


def test_an_app_wide_login_must_let_the_probes_pass() -> None:
    def host(exempt: bool) -> Flask:
        app = Flask("host")
        app.register_blueprint(health.blueprint(ready={"disk": lambda: "full"}))

        @app.before_request
        def login_first() -> ResponseReturnValue | None:
            if exempt and request.blueprint == "readygate_health":
                return None
            return redirect("/login")

        return app

    # To a kubelet and to HAProxy this is success: an unready replica would get traffic.
    assert host(False).test_client().get("/readyz").status_code == 302
    client = host(True).test_client()
    until(lambda: client.get("/readyz").text == "disk failed")
    assert client.get("/readyz").status_code == 503
    assert client.get("/readyz/disk").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert client.get("/anything").status_code == 302


def test_a_redirect_to_https_must_let_the_probes_pass() -> None:
    app = Flask("host")
    app.register_blueprint(health.blueprint())

    @app.before_request
    def https_only() -> ResponseReturnValue | None:
        if request.is_secure or request.blueprint == "readygate_health":
            return None
        return redirect(request.url.replace("http://", "https://", 1), 301)

    client = app.test_client()
    assert client.get("/readyz").status_code == 200
    assert client.get("/").status_code == 301
    # A path that is no route of ours is the host's: no probe may be misspelt into an open door.
    assert client.get("/readyz/").status_code == 301


def test_trusted_hosts_want_the_probe_to_name_one() -> None:
    app = Flask("host")
    app.config["TRUSTED_HOSTS"] = ["shop.example"]
    app.register_blueprint(health.blueprint())
    client = app.test_client()
    # A kubelet asks by the pod's address, unless httpGet.httpHeaders says otherwise.
    assert client.get("/readyz", headers={"Host": "10.0.3.7:8000"}).status_code == 400
    assert client.get("/readyz", headers={"Host": "shop.example"}).status_code == 200


def test_two_apps_in_one_process_never_meet() -> None:
    well, ill = Flask("well"), Flask("ill")
    well.register_blueprint(health.blueprint(ready={"disk": lambda: None}))
    ill.register_blueprint(health.blueprint(ready={"disk": lambda: "full"}), url_prefix="/ill")
    until(lambda: well.test_client().get("/readyz").text == "OK")
    until(lambda: ill.test_client().get("/ill/readyz").text == "disk failed")
    assert well.test_client().get("/readyz").text == "OK"
    assert well.test_client().get("/readyz/queue").text == "unknown check; there are: disk"
    assert ill.test_client().get("/readyz").status_code == 404


@pytest.mark.parametrize("package", ["health", "replicas", "entitlements", "auth"])
def test_a_copied_folder_works_under_another_package(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_copy").mkdir()
    (tmp_path / "shop_copy" / "__init__.py").touch()
    shutil.copytree(ROOT / package, tmp_path / "shop_copy" / package)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        copied = importlib.import_module(f"shop_copy.{package}")
        assert copied.__file__ is not None
        assert Path(copied.__file__).is_relative_to(tmp_path)
        assert copied is not sys.modules.get(package)
        if package == "health":
            app = Flask("shop")
            app.register_blueprint(copied.blueprint())
            assert app.test_client().get("/readyz").text == "OK"
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "shop_copy"]:
            del sys.modules[name]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_pages_code_runs_as_it_stands(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_block(number, tmp_path, monkeypatch)


def test_the_first_token_comes_from_the_pages_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [number] = [number for number, block in enumerate(blocks("python")) if "token_commands" in block]
    app: Flask = run_block(number, tmp_path, monkeypatch)["app"]
    made = app.test_cli_runner().invoke(args=["token", "create", "ops", "--role", "admin"])
    assert made.exit_code == 0, made.output
    client = app.test_client()
    assert client.get("/api/v2/replicas").status_code == 401
    known = {"Authorization": f"Bearer {made.stdout.strip()}"}
    until(lambda: client.get("/api/v2/replicas", headers=known).status_code == 200)


def test_no_group_of_the_packages_takes_a_name_that_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [number] = [number for number, block in enumerate(blocks("python")) if "replicas_commands" in block]
    app: Flask = run_block(number, tmp_path, monkeypatch)["app"]
    assert set(app.cli.commands) == {"license", "replicas"}


def run_block(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a block of the page leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/page.db")
    (tmp_path / "keys.json").write_text(
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'
    )
    # The wheel's names, here the folders'.
    code = re.sub(r"from readygate import (.*)", r"import \1", blocks("python")[number])
    code = code.replace("from readygate.", "from ")
    # What a block takes for granted, the page says in words above it.
    engine = create_engine(f"sqlite:///{tmp_path}/page.db")
    for metadata in (replicas.metadata, entitlements.metadata, auth.metadata):
        metadata.create_all(engine)
    service = entitlements.EntitlementsService(keys=dict)
    identity = "8b6299a5-6919-4228-9354-4004f670bc13"
    membership = replicas.Membership(engine, replica_id=identity, version="1", judge=service)
    names: dict[str, Any] = {"__name__": "page", "app": Flask("page")}
    names |= {"engine": engine, "service": service, "membership": membership}
    exec(compile(code, f"docs/reusing.md, block {number}", "exec"), names)  # it is our own page
    engine.dispose()
    return names


def test_the_readmes_code_runs_as_it_stands() -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block.replace("from readygate import", "import"), "README.md", "exec"), names)
    until(lambda: names["app"].test_client().get("/readyz").text == "OK")


def test_the_page_shows_the_examples_as_they_are() -> None:
    conf = (ROOT / "examples" / "own_database" / "gunicorn.conf.py").read_text()
    assert any(line in conf for line in PAGE.splitlines() if line.startswith("from readygate.replicas.gunicorn import"))
    for folder in sorted((ROOT / "examples").iterdir()):
        assert f"../examples/{folder.name}" in PAGE
