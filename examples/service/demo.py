"""What only the demonstration has: the shop page, its goods, and persons to play."""

from __future__ import annotations

import datetime as dt
import itertools
import secrets
from pathlib import Path
from typing import Literal

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict

from consentier import ConsentRecord
from consentier.consent.records import SubjectKind

from .app import POLICY_VERSION, Parts
from .shop import Shop

__all__ = ["add_demo"]

PAGE = Path(__file__).parent / "page"

_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)


class ProductOut(BaseModel):
    """One of the shop's goods."""

    item_id: str
    title: str
    category: str
    price: float


class PersonIn(BaseModel):
    """Whom to play: somebody new, or a regular customer who has permitted both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["new", "regular"]


class PersonOut(BaseModel):
    """A person to play. Their ids are drawn at random, and are in the page's memory only."""

    visitor_id: str
    customer_id: str
    online: bool
    crm: bool
    logged_in: bool
    viewed: int
    bought: int


def add_demo(app: FastAPI, parts: Parts, shop: Shop) -> None:
    """Add the shop page and what it needs to the service."""
    regulars = itertools.cycle(shop.regulars)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": _POLICY})

    @app.get("/demo/products")
    async def products() -> list[ProductOut]:
        return [
            ProductOut(
                item_id=product.item_id,
                title=product.title,
                category=product.category,
                price=product.price,
            )
            for product in shop.products.values()
        ]

    @app.post("/demo/persons")
    def persons(wanted: PersonIn) -> PersonOut:
        visitor, customer = f"v-{secrets.token_hex(8)}", f"c-{secrets.token_hex(8)}"
        now = dt.datetime.now(dt.UTC)
        if wanted.kind == "new":
            parts.ledger.append([_granted(customer, "customer", "contact:email", now)])
            return PersonOut(
                visitor_id=visitor, customer_id=customer, online=False, crm=False, logged_in=False,
                viewed=0, bought=0,
            )  # fmt: skip
        # What a shop has on record of somebody who permitted both before the first of these things happened.
        regular = next(regulars).moved(now)
        since = regular.begins - dt.timedelta(days=1)
        parts.ledger.append(
            [
                _granted(visitor, "visitor", "online", since),
                _granted(customer, "customer", "crm", since),
                _granted(customer, "customer", "contact:email", since),
            ]
        )
        parts.ledger.login(visitor, customer, at=now, evidence="login")
        parts.online.append(visitor, regular.viewed)
        parts.crm.append(customer, regular.bought)
        parts.crm.set_attributes(customer, regular.attributes, at=now)
        return PersonOut(
            visitor_id=visitor, customer_id=customer, online=True, crm=True, logged_in=True,
            viewed=len({event.item_id for event in regular.viewed}),
            bought=len({event.item_id for event in regular.bought}),
        )  # fmt: skip

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _granted(subject: str, kind: SubjectKind, permission: str, at: dt.datetime) -> ConsentRecord:
    return ConsentRecord(
        secrets.token_hex(16), subject, kind, permission, "granted", at, at,
        basis="consent", collected_by="reference service", policy_version=POLICY_VERSION,
    )  # fmt: skip
