"""Checks of VWO: settings, the server for events, and the clock of this machine compared with VWO's."""

import time
from collections.abc import Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime

from tornado_gateway import __version__, core
from tornado_gateway.cli.doctor.machine import Machine
from tornado_gateway.cli.doctor.remedies import FAIL, OK, WARN, Finding
from tornado_gateway.config import Config
from tornado_gateway.errors import UpstreamError
from tornado_gateway.settings.compilation import compile_document
from tornado_gateway.settings.documents import read_document
from tornado_gateway.settings.failures import describe_failure
from tornado_gateway.telemetry.problems import code_of_upstream
from tornado_gateway.upstream.client import Dialect, Upstream
from tornado_gateway.upstream.curl import CurlError, CurlPool

CLOCK_WARN_SECONDS = 30.0
CLOCK_FAIL_SECONDS = 300.0

Looked = tuple[Finding, core.Settings | None]


async def check_settings(config: Config, previous_sdk_keys: Sequence[str] = ()) -> Looked:
    """Check the settings. If the key is rejected, they may be those of a previous key, as the gateway does it."""
    if config.is_offline:
        return _check_file(config)
    looked = await _check_upstream(config)
    for key in previous_sdk_keys if looked[0].code == "key-refused" else ():
        finding, settings = await _check_upstream(replace(config, sdk_key=key))
        if settings is not None:
            message = f"the current key is rejected, a previous one is in use: {finding.message}"
            return Finding("upstream", WARN, "key-previous", message), settings
    return looked


def _check_file(config: Config) -> Looked:
    """Check SETTINGS_FILE of a gateway without an account."""
    assert config.settings_file is not None  # noqa: S101  `load` requires it
    return _judge_settings(config, read_document(config.settings_file), f"offline, from {config.settings_file}")


async def _check_upstream(config: Config) -> Looked:
    before = time.monotonic()
    try:
        document = await _fetch_settings(config)
    except UpstreamError as error:
        return Finding("upstream", FAIL, code_of_upstream(error.status, str(error)), _reason(error)), None
    milliseconds = (time.monotonic() - before) * 1000
    return _judge_settings(config, document, f"{config.upstream_url} responded in {milliseconds:.0f} ms, key accepted")


async def _fetch_settings(config: Config) -> bytes:
    upstream = Upstream(
        config.upstream_url,
        config.collect_url,
        *config.account,
        sdk_name=config.sdk_name,
        sdk_version=__version__,
        timeout_seconds=config.socket_timeout_seconds,
        ca_path=config.upstream_ca_path,
    )
    try:
        return await upstream.fetch_settings(Dialect())
    finally:
        upstream.close()


def _judge_settings(config: Config, document: bytes, origin: str) -> Looked:
    try:
        settings = compile_document(document, core.Sdk(config.sdk_name, __version__)).settings
    except core.SettingsError as error:
        is_json = document.lstrip()[:1] in (b"{", b"[")
        code = "settings-unusable" if is_json or config.is_offline else "upstream-strange"
        return Finding("upstream", FAIL, code, _reason(error)), None
    return Finding("upstream", OK, OK, f"{origin}, {len(settings.features)} features"), settings


def _reason(error: Exception) -> str:
    """Return the reason in the words of the gateway's log."""
    return describe_failure(error).removesuffix(".")


async def check_server(config: Config, machine: Machine, url: str, check: str) -> tuple[Finding, Finding]:
    """Any response is enough: it shows that the server is reachable, and its clock."""
    client = CurlPool(timeout_seconds=config.socket_timeout_seconds, ca_path=config.upstream_ca_path)
    try:
        response = await client.request(url)
    except CurlError as error:
        if error.response is None:
            unknown = Finding("clock", WARN, "upstream-unreachable", "not checked: VWO could not be reached")
            return Finding(check, FAIL, "collector-unreachable", f"{url}: {error}"), unknown
        response = error.response  # of a large page, only the head is needed
    finally:
        client.close()
    now = machine.now()
    return Finding(check, OK, OK, f"{url} answers"), _judge_clock(response.headers.get("date", ""), now)


def _judge_clock(date: str, now: float) -> Finding:
    try:
        off = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding("clock", OK, OK, "not checked: the response of VWO has no date")
    if abs(off) < CLOCK_WARN_SECONDS:
        return Finding("clock", OK, OK, f"within {CLOCK_WARN_SECONDS:.0f} s of VWO's clock")
    state = WARN if abs(off) < CLOCK_FAIL_SECONDS else FAIL
    direction = "ahead of" if off > 0 else "behind"
    return Finding("clock", state, "clock", f"{abs(off):.0f} s {direction} VWO's clock")
