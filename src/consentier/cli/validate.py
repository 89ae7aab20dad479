"""``consentier validate``: does the shop's data keep the data contract?"""

from __future__ import annotations

import typer

from consentier.cli.options import AsJson, BadRows, OnBadRowsOption, ShopData
from consentier.cli.output import CHECK_FAILED, print_json, print_table, say
from consentier.errors import DataError, ShopInvalid


def validate(
    data: ShopData,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Check the shop's tables against the data contract; exit with 1 if they break it.

    By default the first bad row ends the check of its table, and the other tables are checked all the same;
    so they are where a file is misnamed, or a table stands there twice.
    With --on-bad-rows drop all bad rows are counted, unless one is bad that may not be dropped.
    What is odd about valid tables, ids that are written in two ways say, is told and breaks nothing.
    """
    from consentier.features.doubts import doubts
    from consentier.features.tables import read_shop, require_directory

    if "://" not in data:
        require_directory(data)
    try:
        shop = read_shop(data, on_bad_rows=on_bad_rows.value)
    except DataError as error:
        problems = error.problems if isinstance(error, ShopInvalid) else (str(error),)
        if as_json:
            print_json({"ok": False, "error": str(error), "errors": problems})
        else:
            for problem in problems:
                say(f"not valid: {problem}", style="red")
        raise typer.Exit(CHECK_FAILED) from error
    report, found = shop.report, doubts(shop)
    if as_json:
        print_json(report.to_dict() | {"doubts": found})
    else:
        rows = [[name, count, report.rows_kept[name]] for name, count in report.rows_in.items()]
        print_table(["table", "rows", "kept"], rows)
        say()
        if report.ok:
            say("valid: every row keeps the data contract", style="green")
        else:
            failures = [
                [failure.table, failure.column, str(failure.rule), failure.count, str(failure.first)]
                for failure in report.failures
            ]
            print_table(["table", "column", "rule", "rows", "first"], failures)
        for doubt in found:
            say(f"but look at {doubt}", style="yellow")
    if not report.ok:
        raise typer.Exit(CHECK_FAILED)
