"""``caplet models``: the ready-made architectures."""

from caplet.cli.output import Json, console, print_json


def command(json: Json = False) -> None:
    """List the ready-made models with image size, groups and parameter counts."""
    from caplet.api import list_models

    rows = list_models()
    if json:
        print_json({"models": rows})
        return
    from rich.table import Table

    table = Table(title="Models")
    for heading in ("name", "family", "image", "classes", "parameters", "about"):
        table.add_column(heading, justify="right" if heading in ("classes", "parameters") else "left")
    for row in rows:
        image = "x".join(map(str, row["image"]))
        table.add_row(row["name"], row["family"], image, str(row["classes"]), f"{row['parameters']:,}", row["about"])
    console().print(table)
