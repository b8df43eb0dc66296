"""Tables about finished runs."""

from typing import TYPE_CHECKING

from caplet.cli.output import console, kilobytes

if TYPE_CHECKING:
    from caplet.api import CompressedModel, QuantizeResult


def show_quantized(result: "QuantizeResult") -> None:
    """Float against every shipped model: accuracy with interval, bytes, reductions, widths, files."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metrics, out = result.metrics, console()
    first = result.float_test
    table = Table(
        title=f"Float against integers: {first.n:,} test images, 95 % intervals",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("model", "accuracy (%)", "loss (pp)", "bytes", "W", "A"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    interval = f"{first.percent:.2f} [{first.low:.2f}, {first.high:.2f}]"
    table.add_row("float", interval, "", kilobytes(metrics["float"]["weight_bytes"]), "1.0x", "1.0x")
    for shipped in result.models:
        record, test, pair = shipped.record, shipped.test, shipped.against_float
        table.add_row(
            shipped.role,
            f"{test.percent:.2f} [{test.low:.2f}, {test.high:.2f}]",
            f"{pair.loss:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]",
            kilobytes(record["file_bytes"]),
            f"{record['weight_reduction']:.1f}x",
            f"{record['activation_reduction']:.1f}x",
        )
    out.print(table)
    for shipped in result.models:
        widths = ", ".join(
            f"{name} {'/'.join(str(w.get(kind, '-')) for kind in ('weights', 'activations', 'routing'))}"
            for name, w in shipped.record["widths"].items()
        )
        out.print(f"{shipped.role}: {shipped.path}")
        out.print(f"  bits of weights/activations/routing: {widths}")
    search = metrics["search"]
    out.print(
        f"{metrics['reason']}; {search['probes']} probes, {search['full_passes']:.1f} full passes of"
        f" {search['calibration_images']:,} calibration images, {search['seconds']:.0f} s"
    )


def show_compressed(result: "CompressedModel") -> None:
    """The verdict: float against integers, every limit, every engine, and where the files are."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metrics, out = result.metrics, console()
    before, after, pair = metrics["float"], metrics["compressed"], metrics["compressed"]["paired"]
    table = Table(
        title=f"Float against the result: {pair['n']:,} test images, 95 % intervals",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("model", "accuracy (%)", "loss (pp)", "bytes", "MACs"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    first, second = before["test"], after["test"]
    table.add_row(
        "float",
        f"{first['percent']:.2f} [{first['low']:.2f}, {first['high']:.2f}]",
        "",
        kilobytes(before["bytes"]),
        f"{before['macs']:,}",
    )
    table.add_row(
        "compressed",
        f"{second['percent']:.2f} [{second['low']:.2f}, {second['high']:.2f}]",
        f"{pair['loss']:+.2f} [{pair['low']:+.2f}, {pair['high']:+.2f}]",
        kilobytes(after["file_bytes"]),
        f"{metrics['limits']['macs']['found']:,}",
    )
    out.print(table)
    names = {"max_drop": "loss on calibration images (pp)", "flash": "flash", "ram": "RAM", "macs": "MACs"}
    for name, limit in metrics["limits"].items():
        found = f"{limit['found']:+.2f}" if name == "max_drop" else f"{limit['found']:,}"
        if limit["asked"] is None:
            out.print(f"{names[name]}: {found}, no limit")
        else:
            kept = "missed" if name in metrics["missed"] else "kept"
            out.print(f"{names[name]}: {found} of {limit['asked']:,}: {kept}")
    for engine in metrics["verified"]:
        same = engine["codes"] - engine["differing"]
        out.print(f"{engine['target']}: {same:,} of {engine['codes']:,} codes identical")
    threads = metrics["speed"]["threads"]
    for side, rate in metrics["speed"]["sides"].items():
        told = "" if side == "float" else f", {rate['times']:.1f}x the float model's"
        out.print(f"{side}: {rate['median']:,.0f} images/s on {threads} thread{'s' * (threads > 1)}{told}")
    out.print(f"{after['times_smaller']:.1f}x fewer bytes; see {result.report}")
