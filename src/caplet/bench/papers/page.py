"""The page about redone rows, in Markdown, and the record that it is made from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from caplet.bench.papers.rows import PAPERS, ROWS

PAGE, RECORD = "papers.md", "papers.json"

HEADINGS = (
    "model",
    "data",
    "method",
    "float, %",
    "compressed, %",
    "loss, points",
    "W",
    "A",
    "A*",
    "bytes",
    "RAM",
    "MACs",
    "search, passes",
    "time",
    "published",
)
LEGEND = """\
Accuracies are on the test split, with 95 % intervals; the loss is paired (same images). W and A: how many times smaller
the weights and all computed tensors are than in 32-bit float (elements x bits); A*: the image and each block's output
only, as Q-CapsNets counts. Bytes are those
of the file that ships, RAM is the peak with all votes stored, MACs are of one image. A search's cost is in passes of
the calibration images through the model; the time is the whole row's, with measuring the test split. *Published* is
what the paper itself reports for its own models, or its authors did later; models and training differ, so that it is no
target. Searches, pruning and calibration looked at images cut from the training split only."""


def record_of(
    rows: Mapping[str, tuple[dict[str, Any] | None, str | None]],
    limits: Mapping[str, Any],
    threads: int,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The record: every row in the papers' order, with what was measured or why it is blank, JSON values.

    Args:
        rows: by name, what was measured, or why it was not; rows that were not asked for are left out.
        limits: on images, None where there is none.
    """
    listed = []
    for name, row in ROWS.items():
        if name not in rows:
            continue
        measured, missing = rows[name]
        listed.append(
            {
                "name": name,
                "paper": row.paper.name,
                "model": row.network.about,
                "data": row.network.data,
                "method": row.work.method,
                "settings": row.work.to_json(),
                "published": [asdict(published) for published in row.published],
                "measured": measured,
                "missing": missing,
            }
        )
    papers = [asdict(paper) for paper in PAPERS]
    return {"papers": papers, "rows": listed, "limits": limits, "threads": threads, "environment": environment}


def page(record: Mapping[str, Any]) -> str:
    """The record as Markdown: a table for each paper, then what could not be redone and why."""
    about = record["environment"]
    limits = [f"{name.replace('_', ' ')} {value:,}" for name, value in record["limits"].items() if value is not None]
    lines = [
        "# Tables of papers, redone",
        "",
        f"{about['started'][:10]}, {about['machine']}, {record['threads']} thread(s)"
        + (f"; limited to {', '.join(limits)}" if limits else "")
        + f". Made by `{about['command']}`.",
        "",
        LEGEND,
    ]
    for paper in record["papers"]:
        rows = [row for row in record["rows"] if row["paper"] == paper["name"]]
        if not rows:
            continue
        lines += [
            "",
            f"## {paper['title']}",
            "",
            f"[doi:{paper['doi']}](https://doi.org/{paper['doi']}). Here: {paper['reading']}.",
        ]
        made = [row for row in rows if row["measured"] is not None]
        if made:
            lines += ["", f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
            lines += [f"| {' | '.join(_cells(row))} |" for row in made]
            lines += [f"\n`{row['name']}`: {row['measured']['reason']}." for row in made if not row["measured"]["met"]]
        blank = [row for row in rows if row["measured"] is None]
        if blank:
            lines += ["", "Not redone:", "", "| model | data | method | published | why |", "|---|---|---|---|---|"]
            lines += [f"| {' | '.join(cells)} |" for cells in _blank(blank)]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    found = row["measured"]
    note = f" ({found['data_note']})" if found["data_note"] else ""
    loss = found["against"]
    return [
        row["model"],
        row["data"] + note,
        row["method"],
        _accuracy(found["float"]),
        _accuracy(found["compressed"]),
        f"{loss['loss']:.2f} [{loss['low']:.2f}, {loss['high']:.2f}]",
        f"{found['weights']:.2f}x",
        f"{found['activations']:.2f}x",
        "" if found["outputs"] is None else f"{found['outputs']:.2f}x",
        f"{found['bytes']:,}",
        f"{found['ram']:,}",
        f"{found['macs']:,}",
        "" if found["passes"] is None else f"{found['passes']:.1f} of {found['calibration_images']:,}",
        f"{found['seconds']:,.0f} s",
        _published(row),
    ]


def _blank(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Cells of rows without figures; methods that lack the same on the same network share a line."""
    methods: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        methods.setdefault((row["model"], row["data"], _published(row), row["missing"]), []).append(row["method"])
    for (model, data, published, missing), names in methods.items():
        yield model, data, "; ".join(names), published, missing


def _accuracy(found: Mapping[str, Any]) -> str:
    return f"{found['percent']:.2f} [{found['low']:.2f}, {found['high']:.2f}] of {found['n']:,}"


def _published(row: Mapping[str, Any]) -> str:
    return "; ".join(map(_told, row["published"]))


def _told(found: Mapping[str, Any]) -> str:
    parts = (("W", found["weights"]), ("A", found["activations"]), ("loss", found["loss"]))
    return ", ".join(f"{name} {value}" for name, value in parts if value is not None) + f" ({found['source']})"
