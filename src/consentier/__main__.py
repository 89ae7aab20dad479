"""The command ``consentier``, also as ``python -m consentier``."""

from __future__ import annotations

import sys

__all__ = ["main"]

EXIT_MISSING_EXTRA = 3


def main() -> None:
    """Run the command line; without its packages, say how to install them."""
    try:
        from consentier.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.stderr.write(f"error: the command line needs {package}: pip install 'consentier[cli]'\n")
        raise SystemExit(EXIT_MISSING_EXTRA) from None
    app(prog_name="consentier")


if __name__ == "__main__":
    main()
