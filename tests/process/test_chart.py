"""The Helm chart. It renders the manifests of conf/kubernetes, and has no values that lead nowhere."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from itertools import chain

import orjson
import pytest
import yaml
from process import ROOT

from tornado_gateway import __version__
from tornado_gateway.config import OPTIONS

CHART = ROOT / "conf" / "helm" / "tornado-gateway"
TEMPLATES = sorted((CHART / "templates").glob("*"))
SOURCE = "\n".join(path.read_text() for path in TEMPLATES)
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
OPTION_NAMES = {option.name for option in OPTIONS}
SECRETS = {option.name for option in OPTIONS if option.secret}
KEY = {"ACCOUNT_ID": "123456", "SDK_KEY": "0123456789abcdef0123456789abcdef"}

needs_renderer = pytest.mark.skipif(
    not (find_spec("helm_python") or shutil.which("helm")),
    reason="neither helm nor helm-python-sdk (PyPI, 250 MB) is installed",
)


def manifests():
    return [
        document
        for path in sorted((ROOT / "conf" / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def render(values, name="tornado-gateway"):
    """Return the objects that the chart makes of these values; raise RuntimeError if it rejects them."""
    texts = _render_in_process(values, name) if find_spec("helm_python") else _render_by_command(values, name)
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def _render_in_process(values, name):
    import helm_python

    try:
        with helm_python.Chart.load(CHART) as chart:
            chart.validate_schema(values)
            rendered = chart.render(values, name=name, namespace="default")
    except helm_python.HelmError as error:
        raise RuntimeError(str(error)) from None
    return [text for path, text in rendered.items() if path.endswith(".yaml")]


def _render_by_command(values, name):
    command = ["helm", "template", name, str(CHART), "--values", "-"]
    result = subprocess.run(command, input=orjson.dumps(values), capture_output=True, timeout=60)
    if result.returncode:
        raise RuntimeError(result.stderr.decode())
    return [result.stdout.decode()]


def by_name(documents):
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def the(documents, kind):
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def container_of(documents):
    (found,) = the(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return found


def leaves(values, path=()):
    for name, value in values.items():
        if isinstance(value, dict) and value and name != "options":
            yield from leaves(value, (*path, name))
        else:
            yield ".".join((*path, name))


# --- Without a renderer ---


def test_each_value_is_used_and_each_used_value_exists():
    """Values below `with .Values.image`, and whole blocks that are passed on, are named by their block."""
    used = set(re.findall(r"\$?\.Values\.([A-Za-z]+(?:\.[a-z][A-Za-z]*)*)", SOURCE))
    existing = set(leaves(VALUES))
    blocks = {path.rpartition(".")[0] for path in existing} | {path.partition(".")[0] for path in existing}
    assert used <= existing | blocks
    assert {path for path in existing if path not in used} <= {
        path for path in existing if path.startswith(("image.", "resources."))
    }


def test_the_schema_describes_each_value():
    properties = orjson.loads((CHART / "values.schema.json").read_bytes())["properties"]
    assert set(properties) - {"global"} == set(VALUES)
    for name, schema in properties.items():
        if schema.get("additionalProperties") is False:
            assert set(schema["properties"]) == set(VALUES[name]), name


def test_options_exist_and_secrets_are_in_the_secret():
    assert set(VALUES["options"]) <= OPTION_NAMES - SECRETS
    commented = set(re.findall(r"^ +# ([A-Z_]{5,}):", (CHART / "values.yaml").read_text(), re.MULTILINE))
    assert commented
    assert commented <= OPTION_NAMES
    assert set(re.findall(r"Values\.options\.([A-Z_]+)", SOURCE)) <= OPTION_NAMES


def test_the_version_of_the_chart_is_that_of_the_gateway():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_blocks_of_the_templates_are_closed():
    for path in TEMPLATES:
        words = re.findall(r"\{\{-? ?(if|range|with|define|end)\b", path.read_text())
        assert words.count("end") * 2 == len(words), path.name


# --- With a renderer ---


@needs_renderer
def test_all_parts_together_are_the_manifests():
    """So conf/kubernetes documents what the chart installs. Only the checksum of the configuration is of the chart."""
    wanted = by_name(manifests())
    settings, secret = wanted["ConfigMap", "tornado-gateway"]["data"], wanted["Secret", "tornado-gateway"]["stringData"]
    values = {
        "image": {"tag": "latest"},
        "replicas": 2,
        "autoscaling": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "podMonitor": {"enabled": True},
        "options": {"REDIS_HOST": "redis"},
        "secret": {"options": secret},
    }
    rendered = by_name(render(values))
    pod = rendered["StatefulSet", "tornado-gateway"]["spec"]["template"]
    assert len(pod["metadata"].pop("annotations")["checksum/configuration"]) == 64
    wanted["StatefulSet", "tornado-gateway"]["spec"]["template"]["metadata"].pop("annotations")
    wanted["StatefulSet", "tornado-gateway"]["spec"].pop("replicas")  # the autoscaler sets it
    wanted["ConfigMap", "tornado-gateway"]["data"] = settings | {"REDIS_HOST": "redis"}
    assert rendered == wanted


@needs_renderer
def test_the_smallest_values_make_one_pod():
    documents = render({"secret": {"options": KEY}})
    assert sorted(document["kind"] for document in documents) == [
        *("ConfigMap", "Secret", "Service", "Service", "StatefulSet")
    ]
    assert the(documents, "StatefulSet")["spec"]["replicas"] == 1
    assert container_of(documents)["image"] == f"tornado-gateway:{__version__}"
    assert "prometheus.io/scrape" in the(documents, "StatefulSet")["spec"]["template"]["metadata"]["annotations"]


@needs_renderer
def test_a_release_of_another_name_has_selectors_of_its_own():
    documents = render({"secret": {"options": KEY}}, name="canary")
    assert {document["metadata"]["name"] for document in documents} == {"canary", "canary-pods"}
    assert the(documents, "StatefulSet")["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": "canary"}


@needs_renderer
@pytest.mark.parametrize(("workers", "memory"), [(1, "576Mi"), (4, "1344Mi")])
def test_the_memory_limit_follows_from_the_number_of_workers(workers, memory):
    documents = render({"workers": workers, "secret": {"options": KEY}})
    assert container_of(documents)["resources"]["limits"] == {"memory": memory}
    assert the(documents, "ConfigMap")["data"]["WORKERS"] == str(workers)


@needs_renderer
def test_values_reach_their_places():
    digest = "sha256:" + "0" * 64
    values = {
        "image": {"repository": "registry.example/gateway", "digest": digest},
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"limits": {"memory": "1Gi", "cpu": "2"}},
        "secret": {"existing": "vault"},
        "options": {"SHUTDOWN_SECONDS": "60"},
        "storage": {"size": "1Gi", "className": "fast"},
        "service": {"type": "LoadBalancer", "port": 443},
        "drainSeconds": 20,
        "podMonitor": {"enabled": True, "interval": "30s"},
        "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}], "redisPort": 6380},
    }
    documents = render(values)
    pod, container = the(documents, "StatefulSet")["spec"]["template"]["spec"], container_of(documents)
    assert container["image"] == f"registry.example/gateway@{digest}"
    assert container["resources"]["limits"] == {"memory": "1Gi", "cpu": "2"}
    assert container["envFrom"][1] == {"secretRef": {"name": "vault"}}
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert the(documents, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
    assert by_name(documents)["Service", "tornado-gateway"]["spec"]["type"] == "LoadBalancer"
    assert the(documents, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["interval"] == "30s"
    policy = the(documents, "NetworkPolicy")["spec"]
    assert policy["ingress"][0]["from"] == [{"podSelector": {}}]
    assert policy["egress"][0]["ports"][-1]["port"] == 6380


@needs_renderer
@pytest.mark.parametrize("own", [{}, {"sentinelPort": 26380}], ids=["default", "own"])
def test_the_network_policy_allows_sentinels_that_are_configured(own):
    policy = {"networkPolicy": {"enabled": True, **own}, "secret": {"options": KEY}}
    sentinels = {"REDIS_SENTINELS": "sentinel-1,sentinel-2", "REDIS_SENTINEL_MASTER": "main"}
    ports = [
        [
            port["port"]
            for port in the(render(policy | {"options": options}), "NetworkPolicy")["spec"]["egress"][0]["ports"]
        ]
        for options in ({}, sentinels)
    ]
    assert ports == [[53, 53, 443, 6379], [53, 53, 443, 6379, own.get("sentinelPort", 26379)]]


def test_the_template_of_the_network_policy_has_a_port_for_sentinels():
    """Also where no renderer is installed."""
    condition = "{{- if .Values.options.REDIS_SENTINELS }}"
    _, _, rule = (CHART / "templates" / "network.yaml").read_text().partition(condition)
    assert ".Values.networkPolicy.sentinelPort" in rule.partition("{{- end }}")[0]
    assert VALUES["networkPolicy"]["sentinelPort"] == 26379


@needs_renderer
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "secret.options.ACCOUNT_ID is needed"),
        ({"secret": {"options": {"ACCOUNT_ID": "123456"}}}, "secret.options.SDK_KEY is needed"),
        ({"replicas": 2, "secret": {"options": KEY}}, "more than one pod needs options.REDIS_HOST"),
        ({"options": {"WORKERS": "2"}, "secret": {"options": KEY}}, "options.WORKERS: the chart sets this option"),
        ({"options": {"SHUTDOWN_SECONDS": 30}, "secret": {"options": KEY}}, "SHUTDOWN_SECONDS"),
        ({"replica": 2, "secret": {"options": KEY}}, "replica"),
        ({"image": {"digest": "latest"}, "secret": {"options": KEY}}, "digest"),
    ],
)
def test_values_that_cannot_work_are_rejected(values, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        render(values)


@needs_renderer
@pytest.mark.skipif(not find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed (PyPI, 100 MB)")
def test_rendered_objects_fit_the_schema_of_kubernetes():
    import kubernetes_validate

    parts = {"autoscaling": {"enabled": True}, "networkPolicy": {"enabled": True}, "options": {"REDIS_HOST": "redis"}}
    scheduling = {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "gateway", "operator": "Exists"}]}
    documents = [render({"secret": {"options": KEY}} | more) for more in ({}, parts | scheduling)]
    for document in chain(*documents):
        kubernetes_validate.validate(document, "1.30", strict=True)
