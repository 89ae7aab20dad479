"""``consentier recommend``: one question to a directory of bundles."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.ledgers import DataForLedger, OptionalLedgerUrl, ledger_from
from consentier.cli.options import AsJson, At, BundlesPath, LifetimesPath, PolicyPath, RulesPath
from consentier.cli.output import note, print_json, print_table, say, short
from consentier.consent import Channel, Permission
from consentier.models.attribute_encoding import AttributeValue

if TYPE_CHECKING:
    from consentier.serving import Answer, Recommender, Request

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


class PermissionChoice(enum.StrEnum):
    """What the customer permitted."""

    NONE = "none"
    ONLINE = "online"
    CRM = "crm"
    BOTH = "both"


_PERMISSIONS = {
    PermissionChoice.NONE: Permission.NONE,
    PermissionChoice.ONLINE: Permission.ONLINE,
    PermissionChoice.CRM: Permission.CRM,
    PermissionChoice.BOTH: Permission.ONLINE | Permission.CRM,
}


def recommend(
    bundles: BundlesPath,
    session: Annotated[
        str | None, typer.Option("--session", help="Items of the running session, oldest first: a,b,c.")
    ] = None,
    session_item: Annotated[
        list[str] | None,
        typer.Option("--session-item", help="One more item of the session; for ids that hold a comma."),
    ] = None,
    permission: Annotated[
        PermissionChoice | None,
        typer.Option(
            "--permission", help="What the customer permitted; absent: what the ledger says, or none."
        ),
    ] = None,
    linked: Annotated[
        bool, typer.Option("--linked", help="Visitor and customer are one in this session: a login.")
    ] = False,
    channel: Annotated[Channel, typer.Option("--channel", help="Where the answer goes.")] = Channel.SHOP,
    customer_id: Annotated[
        str | None, typer.Option("--customer-id", help="Whom to ask the ledger about.")
    ] = None,
    visitor_id: Annotated[
        str | None, typer.Option("--visitor-id", help="Whom to ask the ledger about.")
    ] = None,
    online_history: Annotated[
        str | None, typer.Option("--online-history", help="Items of the online history, oldest first: a,b,c.")
    ] = None,
    crm_history: Annotated[
        str | None, typer.Option("--crm-history", help="Items ordered or used, oldest first: a,b,c.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option("--attribute", metavar="NAME=VALUE", help="An attribute of the customer; repeatable."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many items.")] = 10,
    exclude: Annotated[str | None, typer.Option("--exclude", help="Items never to show: a,b,c.")] = None,
    allow: Annotated[str | None, typer.Option("--allow", help="The only items to show: a,b,c.")] = None,
    placement: Annotated[
        str | None, typer.Option("--placement", help="Where on the page: product, …")
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option("--catalogue", help="What may be shown now: an items table, CSV or Parquet."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="Only items for which this is true: 'price < 100', see docs/rules.md."),
    ] = None,
    rules: RulesPath = None,
    ledger: OptionalLedgerUrl = None,
    data: DataForLedger = None,
    policy: PolicyPath = None,
    lifetimes: LifetimesPath = None,
    at: At = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each item is in the list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for recommendations, and see which tier answers and why.

    Everything that is said about the customer is used only as far as it is permitted.
    """
    from consentier.serving import Recommender, Request

    request = Request(
        session=[*_ids(session), *(session_item or [])],
        permission=None if permission is None else _PERMISSIONS[permission],
        linked=linked,
        channel=channel,
        customer_id=customer_id,
        visitor_id=visitor_id,
        online_history=None if online_history is None else _ids(online_history),
        crm_history=None if crm_history is None else _ids(crm_history),
        attributes=None if attribute is None else dict(_attribute(text) for text in attribute),
        placement=placement,
        at=at,
        n=n,
        exclude=_ids(exclude),
        allow=None if allow is None else _ids(allow),
        where=where,
        explain=explain,
    )
    # Missing tiers are reported below, and in the answer.
    nobody = ledger is None and data is None
    asked = contextlib.nullcontext() if nobody else ledger_from(ledger, data, lifetimes)
    with asked as opened:
        recommender = Recommender.load(
            bundles,
            ledger=opened,
            policy=policy,
            catalogue=catalogue,
            rules=rules,
            filter_by=names_in(request),
            compiled=False,  # one answer does not make up for the time that Numba takes to start
        )
        if at is not None:  # the bundles are chosen by the clock, so none comes back that has stopped
            recommender = dataclasses.replace(recommender, clock=lambda: at)
        answer = recommender.recommend(request)
    warn_of_problems(recommender)
    if recommender.ledger is None and permission is None and (customer_id or visitor_id):
        note("no ledger was asked about these ids, so nothing is permitted: add --ledger URL or --data DATA")
    if as_json:
        print_json(answer.to_dict())
    else:
        print_answer(answer)


def names_in(request: Request) -> frozenset[str]:
    """The attributes of items that a request filters by."""
    from consentier.serving.item_columns import Expression

    return request.where.names if isinstance(request.where, Expression) else frozenset()


def warn_of_problems(recommender: Recommender) -> None:
    """Say which tiers have no model."""
    for tier, problem in recommender.problems.items():
        note(f"the {tier} tier has no model: {problem}")


def print_answer(answer: Answer) -> None:
    """Print an answer: who gave it, why, and the items."""
    basis = answer.basis
    print_table(
        ["", ""],
        [
            ["tier", str(answer.tier)],
            ["reason", basis.reason],
            ["read", ", ".join(basis.sources) or "nothing about the person"],
            ["bundle", short(basis.bundle_digest or basis.fill_digest)],
            ["policy", basis.policy_version],
        ],
    )
    say()
    if not answer.items:
        say("no items")
        return
    why = answer.explanations
    kinds = ["popular"] * basis.filled + ["new"] * (len(answer.items) - answer.scored - basis.filled)
    values = [*(f"{score:.4f}" for score in answer.scores[: answer.scored]), *kinds]
    print_table(
        ["rank", "item", "score", *(["why"] if why else [])],
        [
            [
                rank,
                item,
                value,
                *([why[rank - 1].text] if why else []),
            ]
            for rank, (item, value) in enumerate(zip(answer.items, values, strict=True), start=1)
        ],
    )


def _ids(text: str | None) -> list[str]:
    return [] if text is None else [item for item in (part.strip() for part in text.split(",")) if item]


def _attribute(text: str) -> tuple[str, AttributeValue]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"{text!r}: write NAME=VALUE", param_hint="'--attribute'")
    return name, _attribute_value(value)


def _attribute_value(text: str) -> AttributeValue:
    """Truth values and numbers as such; a number with a leading zero is a code, and stays a text."""
    if text in ("true", "false"):
        return text == "true"
    return float(text) if _NUMBER.fullmatch(text) else (text or None)
