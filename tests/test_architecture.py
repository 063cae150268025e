"""What the packages may import, and that importing them does nothing: read from their source, and seen in a process."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    name
    for name in ("health", "replicas", "entitlements", "auth", "metrics", "status")
    if (ROOT / name / "__init__.py").exists()
]
MODULES = sorted(file.stem for file in ROOT.glob("*.py") if file.name != "gunicorn.conf.py")
SOURCES = sorted(file.relative_to(ROOT) for name in PACKAGES for file in (ROOT / name).rglob("*.py"))
#: Inside the packages, who may import what (style, "The shape"). Commands name the type of a connection.
MAY = {
    "flask": {"blueprint.py", "guard.py"},
    "sqlalchemy": {"schema.py", "registry.py", "service.py", "tokens.py"},
    "sqlalchemy.engine": {"commands.py", "membership.py"},
    "sqlalchemy.exc": {"membership.py"},
    "click": {"commands.py"},
}
#: What keeps something between two calls.
STATEFUL = {
    *("list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque", "count", "iter", "open"),
    *("Lock", "RLock", "Condition", "Event", "Semaphore", "Thread", "Timer", "local", "ContextVar", "Queue"),
    *("WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "Random", "Blueprint", "Flask", "create_engine"),
}
CACHES = {"cache", "lru_cache", "cached", "memoize"}
MUTATORS = {
    *("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"),
    *("sort", "reverse"),
}


def tree(source: Path) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def imports(source: Path) -> Iterator[tuple[int, str]]:
    """Level (0: absolute) and name of everything it imports, wherever in the file."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def called(node: ast.expr) -> str:
    """The last word of what is called: `threading.Lock()` and `Lock()` are one."""
    target = node.func if isinstance(node, ast.Call) else node
    return target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""


def test_the_documents_table_of_the_house_has_every_room() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().split("## The house", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`([\w./]+)`", table))
    folders = {f"{file.parent.name}/" for file in ROOT.glob("*/*") if file.suffix in (".py", ".yaml", ".conf")}
    folders |= {f"{file.parent.parent.name}/" for file in ROOT.glob("*/*/*.py") if file.parent.parent != ROOT / ".venv"}
    rooms = {file.name for file in ROOT.glob("*.py")} | {each for each in folders if not each.startswith(".")}
    assert rooms <= named, rooms - named


def test_there_are_packages_to_look_at() -> None:
    assert {"health", "replicas", "entitlements"} <= set(PACKAGES)
    assert len(SOURCES) > 10


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_package_imports_neither_another_nor_the_house_around_it(source: Path) -> None:
    ours = {*PACKAGES, *MODULES, "tests", "migrations", "readygate"}
    for level, name in imports(source):
        assert level in (0, 1), f"{'.' * level}{name} leaves the package"
        assert level == 1 or name.split(".")[0] not in ours, f"{name}: a package's own imports are relative"


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_frameworks_are_imported_where_they_belong(source: Path) -> None:
    for level, name in imports(source):
        library = name.split(".")[0]
        if level == 0 and library in MAY:
            assert source.name in MAY[library] | MAY.get(name, set()), f"{name} does not belong into {source}"


def test_health_needs_flask_alone() -> None:
    outside = {
        name.split(".")[0]
        for file in SOURCES
        if file.parts[0] == "health"
        for level, name in imports(file)
        if not level
    }
    assert outside - sys.stdlib_module_names == {"flask"}


@pytest.mark.parametrize("source", [*SOURCES, *(Path(f"{name}.py") for name in MODULES)], ids=str)
def test_no_module_keeps_state(source: Path) -> None:
    module = tree(source)
    held: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            methods = [part for part in ast.walk(node) if isinstance(part, ast.FunctionDef)]
            for function in methods:
                assert not CACHES & {called(each) for each in function.decorator_list}, f"{function.name} remembers"
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        assert not (isinstance(node.value, ast.Call) and called(node.value) in STATEFUL), f"{names} is state"
        if isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
            # A table to look things up in is none, as long as nobody writes to it.
            assert all(name.isupper() or name == "__all__" for name in names), f"{names} is state"
            held |= names
    for part in ast.walk(module):
        assert not isinstance(part, ast.Global), f"global {part.names} is state"
        if isinstance(part, ast.Subscript) and not isinstance(part.ctx, ast.Load):
            assert called(part.value) not in held, f"{called(part.value)} is written to"
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in MUTATORS:
            assert called(part.func.value) not in held, f"{called(part.func.value)} is written to"


_WATCH = """
import collections.abc, importlib, json, os, sys, threading
import alembic, click, cryptography.x509, flask, flask.cli, jwt, pg8000.dbapi, sqlite3, ssl, sqlalchemy
import gunicorn.glogging, prometheus_client
import http.client, platform, sqlalchemy.dialects.postgresql.pg8000, sqlalchemy.dialects.sqlite, urllib.request
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives import serialization

done = []

class Environment(collections.abc.MutableMapping):
    def __getitem__(self, name):
        done.append(f"reads {name}")
        raise KeyError(name)
    def __setitem__(self, name, value):
        done.append(f"sets {name}")
    def __delitem__(self, name):
        done.append(f"deletes {name}")
    def __iter__(self):
        done.append("reads the environment")
        return iter(())
    def __len__(self):
        return 0

def audit(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc")) and ".pyc." not in str(arguments[0]):
        done.append(f"opens {arguments[0]}")
    elif event.startswith(("socket.", "subprocess.", "sqlite3.connect", "os.mkdir", "os.fork", "os.putenv")):
        done.append(event)

sys.path[:0] = sys.argv[1:2]
sys.dont_write_bytecode = True
names = sys.argv[2:]
start = threading.Thread.start
threading.Thread.start = lambda thread: done.append(f"starts {thread.name}") or start(thread)
os.environ = Environment()
sys.addaudithook(audit)
for name in names:
    importlib.import_module(name)
print(json.dumps(done))
"""


def watch(folder: Path, *names: str) -> list[str]:
    """What importing `names` in a process of its own does besides defining names."""
    command = [sys.executable, "-c", _WATCH, str(folder), *names]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
    found: list[str] = json.loads(result.stdout)
    return found


def dotted(source: Path) -> str:
    parts = source.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_importing_a_module_does_nothing_but_define_names() -> None:
    assert watch(ROOT, *MODULES, *(dotted(source) for source in SOURCES)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_works_alone_under_another_name(package: str, tmp_path: Path) -> None:
    (tmp_path / "vendored").mkdir()
    (tmp_path / "vendored" / "__init__.py").touch()
    (tmp_path / "vendored" / package).symlink_to(ROOT / package)
    names = [f"vendored.{dotted(source)}" for source in SOURCES if source.parts[0] == package]
    assert watch(tmp_path, *names) == []
