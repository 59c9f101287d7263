"""A client that openapi-python-client generates from the API description, with a running gateway."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
from process import Gateway, sample_document
from vendor import Vendor

from tornado_gateway.console.openapi import DOCUMENT

# As docs/endpoints.md says: the generator has no parser of JSON lines.
CONFIG = "content_type_overrides:\n  application/x-ndjson: text/plain\n"
PROGRAM = """
import importlib, pkgutil, sys
import fme_client
from fme_client.api.decisions import get_flag, get_flags, track_event
from fme_client.models import FlagRequest, FlagsRequest, TrackRequest

modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(fme_client.__path__, "fme_client.")]
client = fme_client.Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
flag = get_flag.sync(client=client, body=FlagRequest(feature_key="new-checkout", user_id="user-1"))
flags = get_flags.sync(client=client, body=FlagsRequest(user_id="user-1"))
tracked = track_event.sync(client=client, body=TrackRequest(event_name="purchase", user_id="user-1"))
error = track_event.sync(client=client, body=TrackRequest(event_name="purchase"))
print(len(modules), flag.is_enabled, len(flags.flags.additional_properties), tracked.to_dict(), error.code)
"""


def run(*command: object, cwd: Path) -> str:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the generator formats with ruff
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, "PATH": tools}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_generated_client_imports_without_warnings_and_calls_the_gateway(tmp_path):
    (tmp_path / "openapi.json").write_bytes(orjson.dumps(DOCUMENT))
    (tmp_path / "config.yaml").write_text(CONFIG)
    generate = [*("-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning")]
    files = ["--path", "openapi.json", "--config", "config.yaml", "--output-path", "fme_client"]
    run(sys.executable, *generate, *files, cwd=tmp_path)
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(tmp_path / "data", vendor) as gateway:
        url = f"http://127.0.0.1:{gateway.port}"
        printed = run(sys.executable, "-W", "error", "-c", PROGRAM, url, cwd=tmp_path)
    operations = sum(len(item) for item in DOCUMENT["paths"].values())
    modules, rest = printed.split(" ", 1)
    assert int(modules) > operations
    features = len(sample_document()["features"])
    assert rest == f"True {features} {{'purchase': True}} invalid_request\n"
