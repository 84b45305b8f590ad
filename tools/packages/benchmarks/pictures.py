"""The command `pictures`: draws cited runs into docs/figures/, each as SVG and as PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from benchmarks.cited import BY_NAME, FIGURES, ROOT, Document
from benchmarks.snapshot import GET_US_MAX, SWAP_US_MAX

DOTS_AN_INCH: Final = 150
OURS, OTHERS, FLOOR = "#1f6f8b", "#c0562f", "#8a8a8a"
ROWS: Final = {
    "dispatch": ("dispatch", OURS),
    "v2": ("v2", OTHERS),
    "v2_unlocked": ("v2, no lock", "#d98b5f"),
    "v2_cached": ("v2, cached", "#e3b089"),
    "v2_unlocked_cached": ("v2, both", "#efd3b8"),
}


def _bars(axes: Any, labels: Sequence[str], rounds: Sequence[Sequence[float]], colours: Sequence[str]) -> None:
    """The median of the rounds as a bar, each round as a dot."""
    for place, (values, colour) in enumerate(zip(rounds, colours, strict=True)):
        middle = sorted(values)[len(values) // 2]
        axes.bar(place, middle, color=colour, width=0.6, zorder=2)
        axes.scatter([place] * len(values), values, color="black", s=9, zorder=3)
        text = f"{middle:,.0f}" if middle >= 100 else f"{middle:.1f}"
        axes.annotate(text, (place, max(values)), (0, 5), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 1.15 * max(max(values) for values in rounds))
    axes.grid(axis="y", color="#dddddd", zorder=0)


def _logarithmic(*sides: Any) -> None:
    """Axes on which each step is a factor, with plain numbers; an upright one has space for more of them."""
    for side in sides:
        getattr(side.axes, f"set_{side.axis_name}scale")("log")
        between = "25" if side.axis_name == "y" else ""
        side.set_major_formatter(lambda value, _: f"{value:,g}")
        side.set_minor_formatter(lambda value, _, between=between: f"{value:,g}" if f"{value:e}"[0] in between else "")


def dispatch(document: Document, figure: Any) -> None:
    """A dispatcher beside the relay."""
    names = ("relay", "dispatch")
    left, middle, right = figure.subplots(1, 3)
    for axes, field, title in (
        (left, "jobs_per_s", "jobs a second"),
        (middle, "server_us", "server, CPU us a job"),
        (right, "client_us", "client, CPU us a job"),
    ):
        _bars(axes, names, [[each[field] for each in document[name]["rounds"]] for name in names], (FLOOR, OURS))
        axes.set_title(title, fontsize=10)
    figure.suptitle("From intake to inbox by one process: the relay decides nothing (bar: median, dots: rounds)")


def v2(document: Document, figure: Any) -> None:
    """Jobs a second and p99 of each design, by jobs in flight."""
    speed, slowest = figure.subplots(1, 2)
    loads = sorted(document["in_flight"], key=int)
    width = 0.8 / len(ROWS)
    for number, (name, (label, colour)) in enumerate(ROWS.items()):
        places = [place + (number - (len(ROWS) - 1) / 2) * width for place in range(len(loads))]
        found = [document["in_flight"][load][name] for load in loads]
        speed.bar(places, [each["jobs_per_s"]["median"] for each in found], width, color=colour, label=label, zorder=2)
        slowest.bar(places, [each["latency"]["p99_ms"] for each in found], width, color=colour, label=label, zorder=2)
    for axes, title in (
        (speed, "jobs a second, logarithmic"),
        (slowest, "p99 until readable in an inbox, ms, logarithmic"),
    ):
        _logarithmic(axes.yaxis)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(loads)), [f"{load} in flight" for load in loads])
        axes.grid(axis="y", color="#dddddd", zorder=0)
    speed.legend(fontsize=8, frameon=False, loc="upper left")
    figure.suptitle("Beside the design that this one replaces, and that without its lock, its reads, or both")


def latency(document: Document, figure: Any) -> None:
    """Percentiles at each rate, ours and the relay's."""
    axes = figure.subplots()
    rates = sorted({row["per_s"] for row in document["rows"]})
    for design, colour in (("relay", FLOOR), ("dispatch", OURS)):
        rows = {row["per_s"]: row["latency"] for row in document["rows"] if row["design"] == design}
        for part, style in (("p50_ms", "-"), ("p99_ms", "--"), ("p999_ms", ":")):
            name = part.removesuffix("_ms").replace("p999", "p99.9")
            axes.plot(rates, [rows[rate][part] for rate in rates], style, color=colour, marker="o", markersize=3,
                      label=f"{design}, {name}")  # fmt: skip
    _logarithmic(axes.xaxis, axes.yaxis)
    axes.set_xlabel("jobs a second, at set times")
    axes.set_ylabel("ms from the time that was set until readable in an inbox")
    axes.grid(color="#dddddd", which="both", linewidth=0.5)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    most = f"{document['most_per_s']:,.0f}"
    figure.suptitle(f"Latency without coordinated omission (at most {most} jobs/s were placed)")


def snapshot(document: Document, figure: Any) -> None:
    """What a change costs, by the size of the fleet."""
    change, swap = figure.subplots(1, 2)
    costs = document["costs"]
    nodes = [cost["nodes"] for cost in costs]
    for axes, fields, unit, limits in (
        (change, {"whole_ms": "by the whole", "delta_ms": "by the delta"}, "ms", ()),
        (swap, {"get_us": "reading", "swap_us": "replacing"}, "us", (GET_US_MAX, SWAP_US_MAX)),
    ):
        for (field, label), colour in zip(fields.items(), (OTHERS, OURS), strict=True):
            axes.plot(nodes, [cost[field] for cost in costs], color=colour, marker="o", label=label)
        for limit, colour in zip(limits, (OTHERS, OURS), strict=False):
            axes.axhline(limit, color=colour, linestyle="--", linewidth=1, label=f"at most {limit:g} {unit}")
        _logarithmic(axes.xaxis, axes.yaxis)
        axes.set_xlabel("nodes")
        axes.set_ylabel(f"CPU {unit}")
        axes.grid(color="#dddddd", which="both", linewidth=0.5)
        axes.legend(fontsize=8, frameon=False)
    change.set_title("a new index after one change", fontsize=10)
    swap.set_title("the snapshot in a dispatcher", fontsize=10)
    figure.suptitle("Large fleets")


PICTURES: Final[Mapping[str, tuple[Callable[[Document, Any], None], tuple[float, float]]]] = {
    "dispatch": (dispatch, (9, 3.4)),
    "v2": (v2, (9.5, 4)),
    "latency": (latency, (8, 4.6)),
    "snapshot": (snapshot, (9, 3.8)),
}


@click.command()
def pictures() -> None:
    """Draw the runs in docs/figures/ that have a picture.

    As SVG and as PNG, beside them.
    """
    import matplotlib  # of the extra `bench`, which other commands do without

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "scheduler"  # the same picture is the same file
    from matplotlib.figure import Figure

    for name, (draw, inches) in PICTURES.items():
        if not (FIGURES / f"{name}.json").exists():
            click.echo(f"{name}: not drawn, there is no docs/figures/{name}.json")
            continue
        figure = Figure(figsize=inches, layout="constrained")
        draw(BY_NAME[name].load(), figure)
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            path = FIGURES / f"{name}.{suffix}"
            figure.savefig(path, dpi=DOTS_AN_INCH, metadata=metadata)
            click.echo(f"{path.relative_to(ROOT)}: drawn")
