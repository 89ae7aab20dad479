"""``consentier import``: a public data set as a shop's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.options import AsJson, ReplaceOut
from consentier.cli.output import note, print_json, print_table, say


def import_data(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The data set; any other word lists those there are.")
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder with its Parquet files.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to create.")],
    force: ReplaceOut = False,
    as_json: AsJson = False,
) -> None:
    """Convert a public data set into tables of the data contract, with synthetic consents."""
    from consentier.features.adapters import ADAPTERS, import_dataset
    from consentier.progress import progress

    with progress("importing a data set", None):
        rows = import_dataset(name, source, out, force=force)
    adapter = ADAPTERS[name]
    if as_json:
        print_json(
            {
                "out": str(out),
                "rows": rows,
                "cutoff": adapter.cutoff.isoformat(),
                "horizon_days": adapter.horizon_days,
            }
        )
        return
    print_table(["table", "rows"], [[table, count] for table, count in rows.items()])
    say(
        f"\n{name} ({adapter.doc}) written to {out}; its test period is {adapter.horizon_days} days from "
        f"{adapter.cutoff.isoformat()} on"
    )
    note("its consents are synthetic, one grant for each subject: for benchmarking only")
    note(f"next: consentier train {out} --out bundles")
