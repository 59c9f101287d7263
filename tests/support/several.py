"""Several environments in one gateway: their file, their documents at the vendor's stand-in, their numbers."""

import asyncio
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from load import Load
from process import Gateway, sample_document
from vendor import Vendor

from tornado_gateway import core

KEYS = {name: letter * 32 for name, letter in (("production", "a"), ("staging", "b"), ("other", "c"))}
ACCOUNTS = {"production": 111, "staging": 111, "other": 222}
COUNTS = ("delivered", "waiting", "dead", "rejected", "discarded", "lost")


def document(account_id: int, sdk_key: str, **changes: Any) -> bytes:
    return orjson.dumps({**sample_document(), "accountId": account_id, "sdkKey": sdk_key, **changes})


def block(name: str, sdk_key: str | None = None, account: int | None = None, **keys: Any) -> str:
    """A table of the file."""
    values = {"name": name, "account_id": account or ACCOUNTS[name], "sdk_key": sdk_key or KEYS[name], **keys}
    return "\n".join(["[[environment]]", *(f"{key} = {orjson.dumps(value).decode()}" for key, value in values.items())])


def write(path: Path, *blocks: str) -> None:
    """Replace the file as a whole, as deployments do."""
    new = path.with_suffix(".new")
    new.write_text("\n\n".join(blocks) + "\n")
    new.rename(path)


def three(**production: Any) -> list[str]:
    return [block("production", default=True, **production), block("staging"), block("other")]


class KeyedVendor(Vendor):
    """Has a document for each of KEYS. Requests with a key of `troubles` meet a fault with these fields."""

    def __init__(self) -> None:
        super().__init__(sample_document())
        for name, key in KEYS.items():
            self.environments[key] = document(ACCOUNTS[name], key)


def gateway_of(tmp_path: Path, vendor: Vendor, *blocks: str, name: str = "data", **options: object) -> Gateway:
    file = tmp_path / f"{name}.toml"
    write(file, *(blocks or three()))
    defaults = {"ENVIRONMENTS_FILE": file, "UPSTREAM_URL": vendor.url, "FLUSH_EVENTS_INTERVAL": 1, "POLLING_TIME": 1000}
    return Gateway(tmp_path / name, **(defaults | options))


def track(gateway: Gateway, key: str, prefix: str, count: int, connections: int = 4) -> Load:
    """Each visitor causes one event."""

    def request(number: int) -> tuple[str, dict[str, Any]]:
        return f"/server-side/trackEvent?sdkKey={key}", {"eventName": "purchase", "userId": f"{prefix}-{number}"}

    load = Load(gateway.port, request, connections=connections, total=count)
    asyncio.run(load.run())
    return load


def endless_load(port: int, key: str) -> Load:
    """Decisions of one environment, until `running` ends."""

    def request(number: int) -> tuple[str, dict[str, Any]]:
        return f"/server-side/getFlag?sdkKey={key}", {"featureKey": "new-checkout", "userId": f"load-{number}"}

    return Load(port, request, connections=4, pause_seconds=0.02)


@contextmanager
def running(load: Load) -> Iterator[None]:
    """Run a load in a thread."""
    thread = threading.Thread(target=lambda: asyncio.run(load.run()))
    thread.start()
    try:
        yield
    finally:
        load.stopping = True
        thread.join()


def visitors(account: int, prefix: str, count: int) -> set[str]:
    return {core.visitor_uuid(str(account), f"{prefix}-{number}") for number in range(count)}


def statuses(gateway: Gateway) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in gateway.status()["environments"]}


def text_of(gateway: Gateway, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}{path}", timeout=60) as response:
        text: str = response.read().decode()
        return text


def balance(part: dict[str, Any]) -> int:
    """0 if the counts of an environment add up."""
    events = part["events"]
    received: int = events["received"]
    return received - sum(events[name] for name in COUNTS)
