"""The wheel: what is in it, what it brings along, and that it works where nothing knows of the checkout."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from servers import ROOT
from wheels import run

pytestmark = pytest.mark.server
FOLDERS = ("auth", "entitlements", "health", "replicas")


def test_it_holds_the_packages_under_our_name_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {
        f"readygate/{file.relative_to(ROOT)}"
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*")
        if file.suffix == ".py" or file.name == "py.typed"
    }
    assert {f"readygate/{folder}/py.typed" for folder in FOLDERS} <= names


def test_what_health_does_not_need_is_an_extra(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    required = metadata.get_all("Requires-Dist", [])
    assert [each for each in required if "extra ==" not in each] == ["flask<4,>=3.1"]
    assert set(metadata.get_all("Provides-Extra", [])) == {"all", "auth", "entitlements", "postgresql", "replicas"}
    assert metadata["License-Expression"] == "Apache-2.0"
    # The page of an index has no files beside it.
    assert not re.search(r"\]\((?!https?:)", str(metadata.get_payload()))


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("/METADATA"))
        return message_from_bytes(archive.read(name))


def test_health_works_with_flask_alone(with_health: Path, tmp_path: Path) -> None:
    installed = run(str(with_health / "pip"), "list", "--format=freeze", cwd=tmp_path).lower()
    assert "sqlalchemy" not in installed
    assert "pyjwt" not in installed
    assert "cryptography" not in installed
    code = (
        "from flask import Flask; from readygate import health; app = Flask('x');"
        "app.register_blueprint(health.blueprint(ready={'disk': lambda: None}));"
        "answer = app.test_client().get('/readyz'); print(answer.status_code, answer.text)"
    )
    assert run(str(with_health / "python"), "-c", code, cwd=tmp_path) == "200 OK\n"


@pytest.mark.parametrize("package", FOLDERS)
def test_each_extra_alone_brings_what_its_package_imports_and_nothing_else(wheel: Path, package: str) -> None:
    required = [Requirement(each) for each in metadata_of(wheel).get_all("Requires-Dist", [])]
    named = {each.name for each in required if each.marker is None or each.marker.evaluate({"extra": package})}
    distributions = importlib.metadata.packages_distributions()
    imported = {
        canonical(distribution)
        for name in imports(file for file in (ROOT / package).rglob("*.py"))
        for distribution in distributions[name]
    }
    assert imported <= with_their_own(named)
    assert {canonical(name) for name in named} - {"flask"} <= imported


def imports(files: Iterable[Path]) -> set[str]:
    """What they import of others, at the top or anywhere else."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    return found - sys.stdlib_module_names


def with_their_own(names: Iterable[str]) -> set[str]:
    """`names`, and what they bring along, by what is installed here."""
    found: set[str] = set()
    new = [canonical(name) for name in names]
    while new:
        name = new.pop()
        if name not in found:
            found.add(name)
            for each in map(Requirement, importlib.metadata.requires(name) or ()):
                if each.marker is None or each.marker.evaluate({"extra": ""}):
                    new.append(canonical(each.name))
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_with_all_extras_every_module_is_imported(with_all: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, pkgutil, readygate\n"
        "names = [m.name for m in pkgutil.walk_packages(readygate.__path__, 'readygate.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))"
    )
    assert int(run(str(with_all / "python"), "-W", "error", "-c", code, cwd=tmp_path)) > 20


def test_it_is_typed(with_health: Path, tmp_path: Path) -> None:
    (tmp_path / "host.py").write_text("from readygate import health\n\nhealth.blueprint(ready={'disk': lambda: 3})\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    with pytest.raises(AssertionError, match=r'got "int"|expected "str \| None"'):
        run(*command, "--python-executable", str(with_health / "python"), "host.py", cwd=tmp_path)


def test_the_packages_run_on_the_oldest_sqlalchemy_that_we_support(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    # Not our pins, but the other end of the range.
    run(sys.executable, "-m", "venv", str(folder), cwd=tmp_path)
    run(
        str(folder / "bin" / "pip"),
        "install",
        "-q",
        f"{wheel}[replicas,entitlements]",
        "sqlalchemy==2.0.30",
        cwd=tmp_path,
    )
    code = """
import uuid, sqlalchemy
from readygate import entitlements, replicas
engine = sqlalchemy.create_engine("sqlite:///one.db")
for metadata in (replicas.metadata, entitlements.metadata):
    metadata.create_all(engine)
service = entitlements.EntitlementsService(keys=dict)
member = replicas.Membership(engine, replica_id=str(uuid.uuid4()), version="1", judge=service)
member.start()
print(sqlalchemy.__version__, member.refresh(), member.reason(), member.database_reason(), service.reason())
"""
    assert run(str(folder / "bin" / "python"), "-c", code, cwd=tmp_path) == "2.0.30 True None None None\n"
