"""``caplet init``: a commented settings file for ``caplet compress``."""

from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.output import note


def command(
    out: Annotated[Path, typer.Argument(help="The file to write.")] = Path("compress.toml"),
    model: Annotated[str | None, typer.Option("--model", help="The trained model to compress.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="What to train, where there is no model yet.")] = "digits",
    data: Annotated[str, typer.Option("--data", help="Dataset name or image folder.")] = "digits",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a settings file in which every setting of `caplet compress` is shown and explained.

    Example: caplet init flowers.toml --data flowers && caplet compress --settings flowers.toml
    """
    from caplet.api import write_settings

    write_settings(out, model=model, recipe=recipe, data=data, force=force)
    note(f"{out}: edit it, then run: caplet compress --settings {out}")
