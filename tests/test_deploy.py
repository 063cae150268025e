"""What is in deploy/ and the Containerfile fits the service: names, paths, ports, and the sums of the grace periods."""

from __future__ import annotations

import configparser
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

import settings

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
# Rendered by kubectl, a program of the system.
FLEETS = [
    pytest.param(fleet, marks=pytest.mark.system) for fleet in ("base", "overlays/unlicensed", "overlays/licensed")
]
OLDEST, NEWEST = "1.27", "1.37"
NAME = {"app.kubernetes.io/name": "readygate"}
#: What `drain` may take, and what leaving may: a connection and a statement, each within the database's timeout.
DATABASE_OPERATIONS = 2


@functools.cache
def rendered(fleet: str) -> tuple[dict[str, Any], ...]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        missing("kubectl is not installed; a kubectl of 1.21 or newer is needed to run this")
    run = subprocess.run([kubectl, "kustomize", KUBERNETES / fleet], capture_output=True, text=True, timeout=60)
    if "patch.StrategicMerge" in run.stderr:
        missing("this kubectl is older than 1.21, as Debian 12's is, and cannot read today's kustomizations")
    assert run.returncode == 0, run.stderr
    assert not run.stderr, run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def missing(what: str) -> NoReturn:
    """In CI a failure; elsewhere the test skips aloud."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and this is CI")
    pytest.skip(what)


def kind(fleet: str, name: str) -> dict[str, Any]:
    """The one object of its kind."""
    [found] = [document for document in rendered(fleet) if document["kind"] == name]
    return found


def pod(fleet: str) -> dict[str, Any]:
    found: dict[str, Any] = kind(fleet, "Deployment")["spec"]["template"]["spec"]
    return found


def container(fleet: str) -> dict[str, Any]:
    [found] = pod(fleet)["containers"]
    return dict(found)


def environment(fleet: str) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(fleet)["env"]}


def configuration() -> Any:
    """gunicorn.conf.py, read as gunicorn does."""
    spec = importlib.util.spec_from_file_location("gunicorn_conf", ROOT / "gunicorn.conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("READYGATE_CHECKED", "")  # what the module sets is taken back
    monkeypatch.chdir(ROOT)
    return configuration()


def known_variables() -> set[str]:
    """The names in the README's table of variables, which settings.py reads."""
    table = (ROOT / "README.md").read_text().split("## Configuration", 1)[1].split("\n## ", 1)[0]
    names = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([A-Z_]+)`", line.split("|")[1])
    }
    source = (ROOT / "settings.py").read_text()
    return {name for name in names if f'"{name}"' in source}


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_what_kubernetes_takes_and_nothing_it_does_not_know(fleet: str, version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import kubernetes_validate

        for document in rendered(fleet):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_validator_would_notice() -> None:
    import kubernetes_validate

    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"prot": 80}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@pytest.mark.system
@pytest.mark.parametrize(
    ("fleet", "replicas", "kinds"),
    [
        ("base", 1, {"Deployment", "Service", "NetworkPolicy"}),
        ("overlays/unlicensed", 2, {"Deployment", "Service", "NetworkPolicy"}),
        ("overlays/licensed", 3, {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"}),
    ],
)
def test_only_the_licensed_fleet_has_a_disruption_budget(fleet: str, replicas: int, kinds: set[str]) -> None:
    assert {document["kind"] for document in rendered(fleet)} == kinds
    assert kind(fleet, "Deployment")["spec"]["replicas"] == replicas


@pytest.mark.system
def test_the_disruption_budget_never_keeps_a_replica_that_serves_nobody() -> None:
    spec = kind("overlays/licensed", "PodDisruptionBudget")["spec"]
    # A minimum of available ones would forbid every drain where the fleet is scaled down to it.
    assert "minAvailable" not in spec
    assert 1 <= spec["maxUnavailable"] < kind("overlays/licensed", "Deployment")["spec"]["replicas"]
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert spec["selector"]["matchLabels"] == NAME


@pytest.mark.system
def test_a_rollout_of_the_licensed_fleet_never_waits_for_a_pod_that_its_limit_keeps_out() -> None:
    strategy = kind("overlays/licensed", "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxUnavailable"] >= 1


@pytest.mark.system
def test_the_unlicensed_fleet_is_available_with_its_standby_unready() -> None:
    spec = kind("overlays/unlicensed", "Deployment")["spec"]
    assert spec["replicas"] - spec["strategy"]["rollingUpdate"]["maxUnavailable"] <= 1
    assert spec["strategy"]["rollingUpdate"]["maxSurge"] >= 1


@pytest.mark.parametrize("fleet", FLEETS)
def test_every_selector_selects_the_pods_and_no_peer_of_the_network_policy_got_our_label(fleet: str) -> None:
    deployment, service = kind(fleet, "Deployment")["spec"], kind(fleet, "Service")["spec"]
    policy = kind(fleet, "NetworkPolicy")["spec"]
    assert deployment["template"]["metadata"]["labels"] == NAME
    assert deployment["selector"]["matchLabels"] == NAME
    assert service["selector"] == NAME
    assert policy["podSelector"]["matchLabels"] == NAME
    assert policy["egress"][0]["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_network_is_open_to_users_prometheus_names_and_the_database_alone(fleet: str) -> None:
    spec = kind(fleet, "NetworkPolicy")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    [ingress] = spec["ingress"]
    spaces = [one["namespaceSelector"]["matchLabels"] for one in ingress["from"] if "namespaceSelector" in one]
    assert {"kubernetes.io/metadata.name": "monitoring"} in spaces
    [names, database] = spec["egress"]
    assert {(one["protocol"], one["port"]) for one in names["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert database["ports"] == [{"protocol": "TCP", "port": 5432}]


@pytest.mark.parametrize("fleet", FLEETS)
def test_every_variable_is_one_that_the_service_reads(fleet: str, tmp_path: Path) -> None:
    given = environment(fleet)
    assert set(given) <= known_variables()
    files = {"database-url": "postgresql://u@db/x", "admin-token": "a" * 32, "keys.json": '{"keys": []}'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    here = {name: str(tmp_path / Path(value).name) if value.startswith("/") else value for name, value in given.items()}
    here.pop("READYGATE_LICENSE_KEYS", None)
    read = settings.read({**here, "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert read.exclude == "surplus"
    assert read.current_database_url() == "postgresql://u@db/x"
    assert read.current_admin_token() == "a" * 32


@pytest.mark.parametrize("fleet", FLEETS)
def test_secrets_come_as_files_from_volumes_that_are_mounted_and_readable(fleet: str) -> None:
    mounts = {mount["mountPath"]: mount for mount in container(fleet)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(fleet)["volumes"]}
    paths = [Path(value) for value in environment(fleet).values() if value.startswith("/")]
    assert len(paths) == (4 if fleet.endswith("/licensed") else 2)
    assert {str(path.parent) for path in paths} == set(mounts)
    for mount in mounts.values():
        assert mount["readOnly"]
        assert "subPath" not in mount  # such a file never changes
        # Owned by root; the group is what lets us read.
        assert volumes[mount["name"]]["secret"]["defaultMode"] == 0o440
    assert pod(fleet)["securityContext"]["fsGroup"] == pod(fleet)["securityContext"]["runAsGroup"]


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_secrets_and_their_files_are_the_ones_that_the_documents_make(fleet: str) -> None:
    document = deploying()
    volumes = {volume["name"]: volume["secret"]["secretName"] for volume in pod(fleet)["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container(fleet)["volumeMounts"]}
    for value in environment(fleet).values():
        if value.startswith("/"):
            secret, file = mounts[str(Path(value).parent)], Path(value).name
            [made] = re.findall(rf"create secret generic {secret} (.*?)\n(?! )", document, re.DOTALL)
            assert f"--from-file={file}" in made


@pytest.mark.parametrize("fleet", FLEETS)
def test_every_port_is_the_one_that_gunicorn_binds(fleet: str, conf: Any) -> None:
    [port] = container(fleet)["ports"]
    [service] = kind(fleet, "Service")["spec"]["ports"]
    [ingress] = kind(fleet, "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    assert conf.bind.endswith(f":{port['containerPort']}")
    assert service["targetPort"] == port["name"] == ingress["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(fleet)[probe]["httpGet"]["port"] == port["name"]


@pytest.mark.parametrize("fleet", FLEETS)
def test_only_readiness_can_depend_on_anything_but_the_process(fleet: str, conf: Any) -> None:
    one = container(fleet)
    readiness, liveness, startup = one["readinessProbe"], one["livenessProbe"], one["startupProbe"]
    assert readiness["httpGet"]["path"] == "/readyz"
    assert (readiness["periodSeconds"], readiness["timeoutSeconds"]) == (5, 2)
    # A no was measured; each further one would send users to a replica that cannot serve them.
    assert readiness["failureThreshold"] == readiness["successThreshold"] == 1
    assert liveness["httpGet"]["path"] == startup["httpGet"]["path"] == "/healthz"
    # gunicorn had its chance to replace a stuck worker, three times over.
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 3 * conf.timeout
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 30


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_grace_period_covers_the_drain_the_pause_the_requests_and_the_farewell(fleet: str, conf: Any) -> None:
    shell, option, script = container(fleet)["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    match = re.fullmatch(r"timeout (\d+) flask --app app replicas drain --now; sleep (\d+)", script)
    assert match is not None
    drain, pause = map(int, match.groups())
    timeout = settings.read({}).database_timeout_seconds
    assert drain > DATABASE_OPERATIONS * timeout
    # The endpoints lose the pod at once, a load balancer that asks /readyz itself at its next probe.
    assert pause > container(fleet)["readinessProbe"]["periodSeconds"]
    leave = DATABASE_OPERATIONS * timeout
    assert pod(fleet)["terminationGracePeriodSeconds"] > drain + pause + conf.graceful_timeout + leave


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_table_of_numbers_in_the_documents_is_the_manifests(fleet: str, conf: Any) -> None:
    rows = dict(
        re.findall(r"^\| ([^|]+?) \| (.+) \|$", deploying().split("| number |")[1].split("\n\n")[0], re.MULTILINE)
    )
    one = container(fleet)
    probes = {name: one[f"{name}Probe"] for name in ("readiness", "liveness", "startup")}
    period, timeout = probes["readiness"]["periodSeconds"], probes["readiness"]["timeoutSeconds"]
    assert rows["readiness"].startswith(f"every {period} s, timeout {timeout} s, one failure |")
    assert rows["liveness"].startswith(f"`/healthz` every {probes['liveness']['periodSeconds']} s, six failures |")
    assert probes["liveness"]["failureThreshold"] == 6
    assert rows["startup"].startswith(f"`/healthz` every second, {probes['startup']['failureThreshold']} times |")
    assert probes["startup"]["periodSeconds"] == 1
    script = one["lifecycle"]["preStop"]["exec"]["command"][2]
    drain, pause = re.findall(r"\d+", script)
    assert rows["`preStop`"].startswith(f"`drain --now`, then {pause} s |")
    ends = pod(fleet)["terminationGracePeriodSeconds"]
    assert rows["`terminationGracePeriodSeconds`"].startswith(
        f"{ends} | {drain} for the drain, {pause} for the pause, "
    )
    assert f"{conf.graceful_timeout} for requests in flight" in rows["`terminationGracePeriodSeconds`"]
    asked, most = one["resources"]["requests"]["memory"], one["resources"]["limits"]["memory"]
    assert rows["memory"].startswith(f"{asked.removesuffix('Mi')} MiB asked for, {most.removesuffix('Mi')} at most |")
    assert rows["CPU"].startswith("no limit |")
    assert "cpu" not in one["resources"]["limits"]


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_pod_meets_the_restricted_standard_with_a_read_only_root(fleet: str) -> None:
    spec, one = pod(fleet), container(fleet)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["runAsGroup"] == uid_of_the_image()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert set(one["resources"]) == {"requests", "limits"}


def uid_of_the_image() -> int:
    [(uid, gid)] = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    assert uid == gid
    return int(uid)


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_command_is_the_readmes(fleet: str) -> None:
    [start] = re.findall(r"\.venv/bin/pip install -q -r requirements\.txt && \.venv/bin/(\w+)$", readme(), re.MULTILINE)
    assert container(fleet)["command"] == [start]
    assert f'CMD ["{start}"]' in (ROOT / "Containerfile").read_text()
    unit = systemd()
    assert Path(unit["Service"]["ExecStart"]).name == start


def readme() -> str:
    return (ROOT / "README.md").read_text()


def deploying() -> str:
    return (ROOT / "docs" / "deploying.md").read_text()


def test_every_test_that_a_document_names_is_there() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for name in re.findall(r"`(tests/[\w.*-]+)", page.read_text()):
            assert list(ROOT.glob(name)), f"{page.name}: {name}"


def test_docker_and_podman_leave_out_the_same_files() -> None:
    # Docker reads the one, podman and buildah the other.
    assert (ROOT / ".dockerignore").read_text() == (ROOT / ".containerignore").read_text()


def test_the_image_is_built_of_files_that_are_there_and_all_that_the_service_imports() -> None:
    allowed = [line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")]
    for pattern in allowed:
        assert list(ROOT.glob(pattern)), pattern
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"bench", "tests"}
    assert packages | {"migrations"} <= set(allowed)
    assert "*.py" in allowed


def test_the_image_exposes_the_port_that_the_service_binds(conf: Any) -> None:
    [port] = re.findall(r"^EXPOSE (\d+)$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    assert conf.bind.endswith(f":{port}")


class _Unit(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def systemd() -> configparser.RawConfigParser:
    """The unit; of a name that stands there more than once, the last."""
    unit = _Unit(strict=False, delimiters=("=",), comment_prefixes=("#",))
    unit.read(ROOT / "deploy" / "readygate.service")
    return unit


def settings_file() -> dict[str, str]:
    """What deploy/readygate.env sets, and what it would set without its comment signs."""
    lines = re.findall(r"^#?([A-Z_]+=.*)$", (ROOT / "deploy" / "readygate.env").read_text(), re.MULTILINE)
    return dict(line.split("=", 1) for line in lines)


def test_the_units_times_fit_gunicorns_and_it_gives_up_after_five_starts(conf: Any) -> None:
    text, unit = (ROOT / "deploy" / "readygate.service").read_text(), systemd()
    service = unit["Service"]
    timeout = settings.read({}).database_timeout_seconds
    assert int(service["TimeoutStopSec"]) > conf.graceful_timeout + DATABASE_OPERATIONS * timeout
    assert service["Type"] == "notify"
    current = settings.read({})
    [drain, pause] = re.findall(r"^ExecStop=(.*)$", text, re.MULTILINE)
    assert drain == "-/opt/readygate/.venv/bin/flask --app app replicas drain --wait"
    assert int(service["TimeoutStopSec"]) > current.stale_after_seconds + DATABASE_OPERATIONS * timeout
    # deploy/haproxy.cfg: inter + fastinter.
    assert float(pause.split()[1]) > 2 * 1.2
    # Five starts that fail, with RestartSec between them, fit into the interval on a slow machine too.
    assert int(unit["Unit"]["StartLimitIntervalSec"]) >= 5 * (int(service["RestartSec"]) + 10)
    assert int(unit["Unit"]["StartLimitBurst"]) == 5


def test_the_unit_and_the_commands_read_one_file_of_settings_and_systemd_and_sh_read_it_alike() -> None:
    text = (ROOT / "deploy" / "readygate.env").read_text()
    assert systemd()["Service"]["EnvironmentFile"] == "/etc/readygate/readygate.env"
    assert ". /etc/readygate/readygate.env" in (ROOT / "deploy" / "readygate-flask").read_text()
    given = settings_file()
    assert set(given) <= known_variables()
    for line in text.splitlines():
        assert line.startswith("# ") or re.fullmatch(r"#?[A-Z_]+=[\w./:-]+", line), line
    # Each file is one that the documents make.
    for value in given.values():
        if value.startswith("/"):
            assert f"> {value}" in deploying() or f" {value}\n" in deploying(), value


def test_the_commands_on_a_systemd_host_have_the_units_settings(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "database-url").write_text(sqlite_url)
    (tmp_path / "admin-token").write_text("a" * 32)
    (tmp_path / "acme.jwt").write_text("no license")
    text = (ROOT / "deploy" / "readygate.env").read_text().replace("/etc/readygate", str(tmp_path))
    (tmp_path / "readygate.env").write_text(text)
    script = tmp_path / "readygate-flask"
    script.write_text(
        (ROOT / "deploy" / "readygate-flask")
        .read_text()
        .replace("/etc/readygate", str(tmp_path))
        .replace("/opt/readygate/.venv/bin/flask", str(Path(sys.executable).parent / "flask"))
        .replace("/opt/readygate", str(ROOT))
    )
    script.chmod(0o755)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
        )

    upgraded = command("db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    assert (tmp_path / "test.db").exists()
    found = json.loads(command("status", "--url", "http://127.0.0.1:1", "--json").stdout)
    assert found["policy"] == "surplus"
    assert found["replicas"] == []
    # A file is named from where the caller is.
    assert "cannot be read" not in command("license", "add", "acme.jwt").stderr


@pytest.mark.system
def test_systemd_finds_nothing_to_complain_about(need: Any, tmp_path: Path) -> None:
    analyze = need("systemd-analyze")
    text = (ROOT / "deploy" / "readygate.service").read_text()
    # The programs are where an installation puts them, which is not here.
    unit = tmp_path / "readygate.service"
    unit.write_text(re.sub(r"/opt/readygate/\.venv/bin/\w+", "/bin/true", text).replace("/opt/readygate", "/"))
    run = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    complaints = [line for line in run.stderr.splitlines() if "readygate" in line]
    assert (run.returncode, complaints) == (0, []), run.stderr


@pytest.mark.system
@pytest.mark.parametrize("number", [0, 1])
def test_prometheus_takes_the_documents_configurations(number: int, need: Any, tmp_path: Path) -> None:
    configuration = re.findall(r"```yaml\n(.*?)```", deploying(), re.DOTALL)[number]
    assert "job_name: readygate\n" in configuration
    # Debian's build has no discovery of pods: that part is left out.
    configuration = re.sub(r" +kubernetes_sd_configs:\n( {6,}.*\n)+", "", configuration)
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration.replace("prometheus-rules.yaml", str(ROOT / "deploy" / "prometheus-rules.yaml")))
    command = [need("promtool"), "check", "config", "--syntax-only", file]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
