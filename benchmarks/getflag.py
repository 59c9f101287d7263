"""What a getFlag costs, next to the same HTTP front answering a constant.

    python benchmarks/getflag.py [--seconds 5] [--rounds 3] [--features 100]

Distinct visitors, a rollout and an A/B rule with a custom-variable segment, durable and fast acknowledgement; the
events are delivered to a stand-in vendor while the load runs.
"""

import argparse
import json
import tempfile
from pathlib import Path

import measure
from accounts import account

PORTS = {"constant": 18001, "durable": 18002, "fast": 18003}
VENDOR_PORT = 18009


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--events-per-request", type=int, default=100)
    options = parser.parse_args()
    settings = Path(tempfile.mkdtemp(prefix="bench-")) / "settings.json"
    settings.write_text(json.dumps(account(options.features)))
    results: dict[str, list[measure.Result]] = {name: [] for name in PORTS}
    for _ in range(options.rounds):
        for name, port in PORTS.items():
            results[name].append(measure_one(name, port, settings, options))
    print("| server | µs CPU per request | spread | requests/s | p50 ms | p99 ms | errors |")
    print("|---|---|---|---|---|---|---|")
    for name, rounds in results.items():
        r = measure.median(rounds)
        print(
            f"| {name} | {r.cpu_microseconds:.1f} | ±{measure.spread(rounds):.1f} | {r.per_second:,.0f} "
            f"| {r.p50:.2f} | {r.p99:.2f} | {r.errors} |"
        )


def measure_one(name: str, port: int, settings: Path, options: argparse.Namespace) -> measure.Result:
    if name == "constant":
        with measure.python_server("constant.py", port) as server:
            return loaded(server, port, options)
    with (
        measure.python_server("constant.py", VENDOR_PORT, core=measure.LOAD_CORE),
        measure.gateway(
            port,
            SETTINGS_FILE=settings,
            EVENT_ACK=name,
            UPSTREAM_URL=f"http://127.0.0.1:{VENDOR_PORT}",
            EVENTS_PER_REQUEST=options.events_per_request,
            EVENT_QUEUE_LIMIT=100_000_000,
        ) as server,
    ):
        return loaded(server, port, options)


def loaded(server: object, port: int, options: argparse.Namespace) -> measure.Result:
    measure.load(server, port, "getflag.lua", 1)  # type: ignore[arg-type]  # warm up
    return measure.load(server, port, "getflag.lua", options.seconds)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
