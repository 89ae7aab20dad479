"""``consentier replay``: give a recorded decision again, and compare."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.ledgers import OptionalLedgerUrl, ledger_at
from consentier.cli.options import AsJson, LifetimesPath, PolicyPath
from consentier.cli.output import CHECK_FAILED, print_json, say
from consentier.cli.recommend import names_in, print_answer
from consentier.errors import AuditError

if TYPE_CHECKING:
    from consentier.serving import Profiles
    from consentier.serving.audit import AuditLine

_PATIENCE = 30.0
"""Seconds that a store is waited for: nobody's page waits meanwhile."""


def replay(
    line: Annotated[
        str,
        typer.Argument(
            metavar="LINE", help="The audit line: its text, a file that holds it, or FILE:NUMBER."
        ),
    ],
    bundles: Annotated[Path, typer.Option("--bundles", help="The bundles that answered.")],
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help="What was asked (JSON): session, online_history, crm_history, …"),
    ] = None,
    online_profiles: Annotated[
        str | None,
        typer.Option(
            "--online-profiles", help="A store that may still hold the online history: path or URL."
        ),
    ] = None,
    crm_profiles: Annotated[
        str | None,
        typer.Option("--crm-profiles", help="A store that may still hold the CRM history: path or URL."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="The keyring of the audit. By default keys.json beside the line's file."),
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option("--catalogue", help="What might be shown then: an items table, CSV or Parquet."),
    ] = None,
    rules: Annotated[Path | None, typer.Option("--rules", help="The business rules of then.")] = None,
    policy: PolicyPath = None,
    ledger: OptionalLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    as_json: AsJson = False,
) -> None:
    """Check the inputs of a recorded decision against its audit line, and give its answer again.

    With --ledger, what is older than the permission was when the answer was given is left out of the inputs,
    as it was then. Exits with 1 if the answer cannot be given again, and says why: inputs erased, another
    bundle, policy or key.
    """
    from consentier.consent.keyring import Keyring
    from consentier.serving import Recommender, Request
    from consentier.serving.replay import Outcome, ReplayInputs
    from consentier.serving.replay import replay as replay_line

    recorded, file = _line(line)
    if keys is None and file is None:
        raise AuditError("name the keyring under which the line was written: --keys")
    asked = ReplayInputs(Request()) if inputs is None else ReplayInputs.load(inputs)
    with contextlib.nullcontext() if ledger is None else ledger_at(ledger, lifetimes) as opened:
        found = replay_line(
            recorded,
            asked,
            Recommender.load(
                bundles,
                policy=policy,
                catalogue=catalogue,
                rules=rules,
                filter_by=names_in(asked.request),
                compiled=False,
            ),
            Keyring.open(keys or keyring_beside(file or Path()), create=False),
            profiles=_profiles(online_profiles, crm_profiles),
            ledger=opened,
        )
    done = found.outcome is Outcome.REPRODUCED
    if as_json:
        answer = None if found.answer is None else found.answer.to_dict()
        print_json({"outcome": found.outcome, "detail": found.detail, "answer": answer})
    else:
        say(found.detail, style="green" if done else "red")
        if found.answer is not None:
            say()
            print_answer(found.answer)
    if not done:
        raise typer.Exit(CHECK_FAILED)


def keyring_beside(audit: Path) -> Path:
    """Where the keyring of an audit directory, or of one of its files, lies by default."""
    if not audit.exists():
        raise AuditError(f"audit log {audit}: there is none")
    return (audit if audit.is_dir() else audit.parent) / "keys.json"


def _line(text: str) -> tuple[AuditLine, Path | None]:
    """The line, and the file that it stands in, if any."""
    from consentier.serving.audit import AuditLine

    if text.lstrip().startswith("{"):
        return AuditLine.from_json(text), None
    path, _, number = text.rpartition(":")
    if not path or not number.isdigit():
        path, number = text, ""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise AuditError(
            f"audit line {path}: cannot be read: {error.strerror or error}. Name the text of a line, a file "
            "that holds one, or FILE:NUMBER of a file of the audit log"
        ) from error
    if not number and len(lines) != 1:
        raise AuditError(f"audit line {path}: holds {len(lines)} lines; name one as {path}:NUMBER")
    if number and not 1 <= int(number) <= len(lines):
        raise AuditError(f"audit line {text}: there are {len(lines)} lines, counted from 1")
    return AuditLine.from_json(lines[int(number or 1) - 1], text), Path(path)


def _profiles(online: str | None, crm: str | None) -> Profiles | None:
    from consentier.serving import Profiles
    from consentier.serving.profile_opening import open_profiles

    if online is None and crm is None:
        return None
    of_customers = None if crm is None else open_profiles(crm, create=False)
    return Profiles(
        online={} if online is None else open_profiles(online, create=False),
        crm={} if of_customers is None else of_customers,
        attributes={} if of_customers is None else of_customers.attributes,
        deadline=_PATIENCE,
    )
