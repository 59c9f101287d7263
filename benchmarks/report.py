"""Results on disk: JSON, a Markdown table and a chart for each question, and the tables in benchmarks/README.md.

python benchmarks/report.py renders everything again from the JSON.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from measure import CORES, HERE, Effort, Row, say

RESULTS = HERE / "results"
README = HERE / "README.md"


class Column(NamedTuple):
    """A key of the rows with its heading; `form` is a format specification."""

    key: str
    heading: str
    form: str = ""


LOAD_COLUMNS = (
    Column("name", "case"),
    Column("cpu_us", "µs CPU per request", ".1f"),
    Column("per_second", "requests/s", ",.0f"),
    Column("p50_ms", "p50 ms", ".2f"),
    Column("p99_ms", "p99 ms", ".2f"),
    Column("p999_ms", "p99.9 ms", ".2f"),
    Column("rss_mb", "RSS MB", ".0f"),
    Column("errors", "errors"),
)
DELIVERED = Column("delivered_percent", "delivered during the load %", ".0f")


class Result(NamedTuple):
    """The answer to a question. `chart` names the column that is drawn; empty for a question that draws itself."""

    question: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    chart: str = "cpu_us"
    notes: Sequence[str] = ()


def save(result: Result, effort: Effort) -> None:
    """Write the result, render it, and show it."""
    document = {
        "question": result.question,
        "title": result.title,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": {"seconds": effort.seconds, "rounds": effort.rounds},
        "machine": machine(),
        "columns": _columns(result),
        "rows": result.rows,
        "chart": result.chart,
        "notes": result.notes,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{result.question}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    render(document)
    show(result)


def show(result: Result) -> None:
    """Print the result without its notes."""
    print(f"\n{result.title}\n\n{table({'columns': _columns(result), 'rows': result.rows})}\n", flush=True)


def _columns(result: Result) -> list[Row]:
    return [column._asdict() for column in result.columns]


def render(document: Mapping[str, Any]) -> None:
    text = f"{table(document)}\n\n{_circumstances(document)}\n"
    (RESULTS / f"{document['question']}.md").write_text(f"# {document['title']}\n\n{text}")
    if document["chart"]:
        draw_bars(document)
    _put_into_readme(document["question"], text)


def table(document: Mapping[str, Any]) -> str:
    columns = [Column(**column) for column in document["columns"]]
    lines = [[column.heading for column in columns], ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [_cells(row, columns) for row in document["rows"]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row, columns: Sequence[Column]) -> list[str]:
    if "skipped" in row:
        return [row["name"], f"skipped: {row['skipped']}", *[""] * (len(columns) - 2)]
    cells = [_cell(row, column) for column in columns]
    return cells if row.get("is_valid", True) else [f"{cells[0]} (**invalid**)", *cells[1:]]


def _cell(row: Row, column: Column) -> str:
    value = row.get(column.key)
    if value is None:
        return ""
    text = format(value, column.form)
    spread = row.get(f"{column.key}_spread")
    return f"{text} ±{spread:{column.form}}" if spread and column.key in ("cpu_us", "per_second") else text


def _circumstances(document: Mapping[str, Any]) -> str:
    machine, effort = document["machine"], document["effort"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rounds = f"{effort['rounds']} round{'s' if effort['rounds'] > 1 else ''}"
    rounds += f" of {effort['seconds']:g} s" if effort["seconds"] else ""
    where = f"{machine['cpu']}, {machine['cores']} cores, load average {machine['load_before']:.1f}"
    return "\n".join([*document["notes"], f"{rounds}, {document['when']}, {where}; {versions}."])


def _put_into_readme(question: str, text: str) -> None:
    start, end = f"<!-- results: {question} -->", f"<!-- end: {question} -->"
    readme = README.read_text()
    chart = f"\n\n![{question}](results/{question}.svg)" if (RESULTS / f"{question}.svg").exists() else ""
    block = f"{start}\n\n{text.strip()}{chart}\n\n{end}"
    README.write_text(re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: block, readme, flags=re.DOTALL))


# ---- Charts ----------------------------------------------------------------------------------------------------------


def draw_bars(document: Mapping[str, Any]) -> None:
    """One bar for each row, the median with the spread as a line."""
    if (plotting := _plotting()) is None:
        return
    key = document["chart"]
    rows = [row for row in reversed(document["rows"]) if row.get(key) is not None]
    heading = next(column["heading"] for column in document["columns"] if column["key"] == key)
    figure, axes = plotting.subplots(figsize=(9, 0.9 + 0.38 * len(rows)), layout="constrained")
    values, spreads = [row[key] for row in rows], [row.get(f"{key}_spread", 0) for row in rows]
    bars = axes.barh([row["name"] for row in rows], values, xerr=spreads, color="#2f6f9f", ecolor="#888888", height=0.7)
    axes.bar_label(bars, labels=[f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values], padding=4)
    if max(values, default=0) > 30 * min(values, default=1):
        axes.set_xscale("log")
        axes.set_xlim(left=1)
    axes.margins(x=0.12)
    axes.set_xlabel(heading)
    axes.set_title(document["title"], loc="left", fontsize=11)
    save_chart(figure, document["question"])


def draw_timeline(question: str, title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Points over time on a logarithmic axis of milliseconds; one colour for each series."""
    if (plotting := _plotting()) is None:
        return
    figure, axes = plotting.subplots(figsize=(9, 4), layout="constrained")
    for name, points in series.items():
        axes.plot([x for x, _ in points], [y for _, y in points], linewidth=0.9, label=name)
    axes.axhline(20, color="#bb3333", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("slowest answer of 100 ms, in ms")
    axes.set_title(title, loc="left", fontsize=11, pad=18)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.15), fontsize=8, frameon=False)
    save_chart(figure, question)


def save_chart(figure: Any, name: str) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    file = RESULTS / f"{name}.svg"
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")


def _plotting() -> Any:
    """matplotlib, if it is installed; with the same ids in the SVG every time."""
    try:
        import matplotlib
    except ImportError:
        say("  no chart: matplotlib is not installed (pip install -e '.[bench]')")
        return None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot


# ---- Where it ran ----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": found[1] if found else platform.machine(),
        "cores": len(CORES),
        "load_before": os.getloadavg()[0],
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    python = platform.python_version() + " (the distribution's)" * (sys.base_prefix == "/usr")
    versions = {"Linux": platform.release().split("-")[0], "Python": python}
    versions |= {name: metadata.version(name) for name in ("uvloop", "httptools", "orjson")}
    for name, command in {"Node": ["node", "--version"], "nginx": ["nginx", "-v"]}.items():
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        versions[name] = re.sub(r".*?(\d+\.\d+\.\d+).*", r"\1", answer.stdout + answer.stderr, flags=re.DOTALL)
    return versions


if __name__ == "__main__":
    for saved in sorted(RESULTS.glob("*.json")):
        render(json.loads(saved.read_text()))
