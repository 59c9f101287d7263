"""The settings document: serving it, compiling it, the memory it takes, and how soon a gateway is ready.

    python benchmarks/settings.py [--quick] [--seconds 3] [--rounds 3]

Serving is compared with nginx, which gets the same bytes from a file in memory (/dev/shm, open_file_cache, sendfile):
its `return` takes no text of that size.
"""

import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import orjson
from accounts import ACCOUNT_ID, SDK_KEY, account
from measure import (
    LOAD_CORE,
    Case,
    Effort,
    Row,
    Target,
    effort,
    end_cleanly_when_told,
    family_of,
    rss_megabytes,
    run_cases,
    say,
    wrk,
)
from report import LOAD_COLUMNS, Column, Result, save
from servers import directory, gateway, nginx, started_gateway, vendor

from tornado_gateway.core import compile_settings
from tornado_gateway.core.compiler import DEFAULT_SDK
from tornado_gateway.settings.compilation import compile_document

PATH = f"/server-side/v2-settings?a={ACCOUNT_ID}&i={SDK_KEY}"
SIZES = (1, 10, 100, 1000)
COMPILE_TIMES = 9
TIMES = Column("times_nginx", "times nginx", ".2f")
COMPILE_COLUMNS = (
    Column("name", "features"),
    Column("document_kb", "document KB", ".0f"),
    Column("parse_ms", "parse ms", ".2f"),
    Column("compile_ms", "compile ms", ".2f"),
    Column("memory_mb", "compiled MB", ".2f"),
    Column("rss_mb", "RSS of a worker MB", ".1f"),
)
READY_COLUMNS = (
    Column("name", "start"),
    Column("ready_ms", "ready after ms", ".0f"),
    Column("slowest_ms", "slowest ms", ".0f"),
)


# ---- Serving ---------------------------------------------------------------------------------------------------------


@contextmanager
def nginx_with(document: bytes) -> Iterator[Target]:
    memory = Path("/dev/shm")  # a file system in memory, also where temporary files are on a disk
    with tempfile.TemporaryDirectory(prefix="bench-", dir=memory if memory.is_dir() else None) as folder:
        Path(folder, "settings.json").write_bytes(document)
        location = f"root {folder}; open_file_cache max=10; try_files /settings.json =404;"
        with nginx(location) as target:
            yield target


def measure_serving(chosen: Effort) -> None:
    document = account(100)
    text = json.dumps(document).encode()

    def case(name: str, serve: partial[AbstractContextManager[Target]]) -> Case:
        return Case(name, serve, "get.lua", [PATH], (PATH, None, text))

    rows = run_cases([case("nginx", partial(nginx_with, text)), case("gateway", partial(gateway, document))], chosen)
    if "skipped" not in rows[0]:
        for row in rows:
            row["times_nginx"] = row["cpu_us"] / rows[0]["cpu_us"]
    notes = [f"The same {len(text):,} bytes, 100 features; nginx has them in a file in memory, with open_file_cache."]
    title = "v2-settings of 100 features, CPU time per request"
    save(Result("settings", title, [*LOAD_COLUMNS, TIMES], rows, notes=notes), chosen)


# ---- Compiling -------------------------------------------------------------------------------------------------------


def compiled(features: int) -> Row:
    """Times and memory of one size; in a process of its own, so that memory starts anew."""
    text = orjson.dumps(account(features))
    compile_settings(orjson.loads(text))  # what is made only once is made now
    document = orjson.loads(text)
    gc.collect()
    before, copies = rss_megabytes(os.getpid()), max(2, 2000 // features)
    kept = [compile_document(bytes(bytearray(text)), DEFAULT_SDK).settings for _ in range(copies)]
    memory_mb = (rss_megabytes(os.getpid()) - before) / len(kept)
    return {
        "name": f"{features:,}",
        "document_kb": len(text) / 1000,
        "parse_ms": _median_ms(lambda: orjson.loads(text)),
        "compile_ms": _median_ms(lambda: compile_settings(document)),
        "memory_mb": memory_mb,
    }


def _median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(COMPILE_TIMES):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times) * 1000


def worker_megabytes(features: int) -> float:
    """After a second of getFlag for all features in turn."""
    with gateway(account(features)) as target:
        wrk(target.port, "getflag.lua", [features], 1, [LOAD_CORE])
        (worker,) = family_of(target.pid)[1:]  # the first is its parent
        return rss_megabytes(worker)


def measure_compiling(chosen: Effort) -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = pool.map(compiled, SIZES, chunksize=1)
    for row, features in zip(rows, SIZES, strict=True):
        say(f"  worker with {features} features")
        row["rss_mb"] = worker_megabytes(features)
    notes = ["CPU time of parsing and of compiling the document; memory with the bytes that it was compiled from."]
    save(Result("compile", "Settings by number of features", COMPILE_COLUMNS, rows, "compile_ms", notes), chosen)


# ---- Starting --------------------------------------------------------------------------------------------------------


def ready_ms(data: Path, options: dict[str, object]) -> float:
    started = time.monotonic()
    with started_gateway(data, **options):
        return (time.monotonic() - started) * 1000


def measure_starting(chosen: Effort) -> None:
    """First with upstream, which leaves the document in the store; then from the store, while upstream is gone."""
    times = 2 if chosen.is_quick else 5
    with directory() as folder:
        (folder / "settings.json").write_text(json.dumps(account(1000)))
        options: dict[str, object] = {"ACCOUNT_ID": ACCOUNT_ID, "SDK_KEY": SDK_KEY}
        with vendor(settings=folder / "settings.json") as port:
            options["UPSTREAM_URL"] = f"http://127.0.0.1:{port}"
            fetched = [ready_ms(folder / f"data-{number}", options) for number in range(times)]
        stored = [ready_ms(folder / "data-0", options) for _ in range(times)]
    rows = [
        {"name": name, "ready_ms": statistics.median(values), "slowest_ms": max(values)}
        for name, values in {"fetched from upstream": fetched, "stored, upstream does not answer": stored}.items()
    ]
    notes = ["1,000 features; from the start of the process until /ready answers 200, looked at every 10 ms."]
    save(Result("start", "Ready after a start", READY_COLUMNS, rows, "ready_ms", notes), chosen)


def main() -> None:
    chosen = effort(__doc__)
    measure_serving(chosen)
    measure_compiling(chosen)
    measure_starting(chosen)


if __name__ == "__main__":
    end_cleanly_when_told()
    main()
