"""The service: permissions, events and recommendations over HTTP, with metrics and health.

It stands behind the shop's own front: whoever calls it is believed about who the visitor and the customer
are. What they permitted it asks of the ledger alone; a permission in a request can only narrow that.

No path and no query holds an id, so that no access log does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import consentier
from consentier import (
    AsyncRecommender,
    Catalogue,
    Channel,
    ConsentierError,
    ConsentRecord,
    Event,
    Ledger,
    Permission,
    Profiles,
    ReloadingRecommender,
)
from consentier.consent import Source
from consentier.serving.loading import TIERS
from consentier.serving.metrics import MeasuredRecommender, prometheus_observer
from consentier.serving.profile_store import SqliteProfiles
from consentier.training.restricted import Restricted
from consentier.training.withdrawal import withdraw

__all__ = ["MAX_BODY_BYTES", "Parts", "create_app", "opened"]

_log = logging.getLogger("examples.service")

POLICY_VERSION = "reference-service-1"
"""Which text a person saw when they decided; a shop names the version of its notice."""

MAX_BODY_BYTES = 1 << 20
"""The longest body that is read: the limits below allow no more than some 500 kB."""

# ---- What goes in and out ----------------------------------------------------------------------------------

Id = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Items = Annotated[list[Id], Field(max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PermissionName(enum.StrEnum):
    """What a person permitted, in a word."""

    NONE = "none"
    ONLINE = "online"
    CRM = "crm"
    BOTH = "both"


_PERMISSIONS = {
    PermissionName.NONE: Permission.NONE,
    PermissionName.ONLINE: Permission.ONLINE,
    PermissionName.CRM: Permission.CRM,
    PermissionName.BOTH: Permission.ONLINE | Permission.CRM,
}


class RecommendationsIn(_Body):
    """One question. Histories are looked up; the running session comes with the question and is not kept."""

    session: Items = Field(default=[], description="Items of the running session, oldest first.")
    visitor_id: Id | None = None
    customer_id: Id | None = None
    logged_in: bool = Field(default=False, description="The visitor is logged in as this customer, now.")
    channel: Channel = Field(default=Channel.SHOP, description="Where the answer goes.")
    permission: PermissionName | None = Field(
        default=None, description="Narrows what the ledger says; it never widens it."
    )
    placement: Id | None = Field(default=None, description="Where on the page: product, …")
    n: int = Field(default=6, ge=1, le=100)
    exclude: Items = Field(default=[], description="Items never to show.")

    def request(self) -> consentier.Request:
        """The same as the recommender takes it."""
        return consentier.Request(
            session=self.session,
            visitor_id=self.visitor_id,
            customer_id=self.customer_id,
            linked=self.logged_in,
            channel=self.channel,
            permission=None if self.permission is None else _PERMISSIONS[self.permission],
            placement=self.placement,
            n=self.n,
            exclude=self.exclude,
            explain=True,
        )


class Recommended(BaseModel):
    """One item of an answer."""

    item_id: str
    score: float
    why: str = Field(description="A sentence for the page.")


class RecommendationsOut(BaseModel):
    """Who answered, why, with what."""

    tier: str
    items: list[Recommended]
    basis: dict[str, Any] = Field(description="What the answer rests on: docs/accountability.md.")
    main_parameters: list[str] = Field(description="What decides the order, in sentences.")

    @classmethod
    def of(cls, answer: consentier.Answer) -> Self:
        """An answer as it goes out."""
        why = answer.explanations or ()
        return cls(
            tier=str(answer.tier),
            items=[
                Recommended(item_id=item, score=score, why=explanation.text)
                for item, score, explanation in zip(answer.items, answer.scores, why, strict=True)
            ],
            basis=dataclasses.asdict(answer.basis),
            main_parameters=list(answer.main_parameters or ()),
        )


class _OfOnePerson(_Body):
    """Of a visitor or of a customer: one of the two."""

    visitor_id: Id | None = None
    customer_id: Id | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.visitor_id is None) == (self.customer_id is None):
            raise ValueError("say whose: either visitor_id or customer_id")
        return self

    @property
    def subject(self) -> tuple[Literal["visitor", "customer"], str]:
        """Kind and id."""
        if self.visitor_id is not None:
            return "visitor", self.visitor_id
        return "customer", str(self.customer_id)


class EventIn(_OfOnePerson):
    """What a visitor did in the shop, or what a customer bought or uses."""

    item_id: Id
    event_type: Id | None = None
    ts: AwareDatetime | None = Field(default=None, description="When, if not now.")
    quantity: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class EventOut(BaseModel):
    """Whether it is stored, and why."""

    stored: bool
    source: str
    reason: str
    ledger_position: int | None


class PermissionIn(_OfOnePerson):
    """A visitor's decision on online data, or a customer's on CRM data."""

    state: Literal["granted", "withdrawn"]
    evidence: Id | None = Field(default=None, description="What proves the decision.")


class PermissionOut(BaseModel):
    """What was done."""

    permission: str
    state: str
    recorded: int
    profile_rows_purged: int = 0
    links_dissolved: int = 0
    bundles_stopping: int = Field(default=0, description="Bundles that hold the person and got a deadline.")


class LinkIn(_Body):
    """A login."""

    visitor_id: Id
    customer_id: Id


class LinkOut(BaseModel):
    """Whether the two are linked: only where both permissions hold."""

    linked: bool


class Ready(BaseModel):
    """Which tiers can answer."""

    ready: bool
    tiers: dict[str, str] = Field(description="Digest of the bundle in use, by tier.")
    problems: dict[str, str] = Field(description="Why a tier has no bundle, or still has the one it had.")
    ledger: Literal["ok", "failing"]


# ---- What it is made of ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parts:
    """Ledger, stores and recommender of one process.

    Attributes
    ----------
    ledger
        Who permitted what.
    online, crm
        Histories, in one store per source.
    recommender
        What answers, and follows the bundles of a directory.
    registry
        Where metrics are.
    bundles
        The directory of the bundles.
    """

    ledger: Ledger
    online: SqliteProfiles
    crm: SqliteProfiles
    recommender: ReloadingRecommender
    registry: CollectorRegistry
    bundles: Path

    def decide(self, decision: PermissionIn) -> PermissionOut:
        """Record a decision, with all that follows from it."""
        kind, subject = decision.subject
        source = Source.ONLINE if kind == "visitor" else Source.CRM
        now = dt.datetime.now(dt.UTC)
        if decision.state == "granted":
            record = ConsentRecord(
                secrets.token_hex(16), subject, kind, str(source), "granted", now, now,
                basis="consent", collected_by="reference service",
                policy_version=POLICY_VERSION, evidence=decision.evidence,
            )  # fmt: skip
            recorded = self.ledger.append([record])
            return PermissionOut(permission=source, state=decision.state, recorded=recorded)
        restricted = Restricted.beside(self.bundles)
        lineage = restricted.lineage() if restricted.path.is_dir() else None
        done = withdraw(
            self.ledger,
            subject,
            kind=kind,
            source=source,
            at=now,
            profiles={Source.ONLINE: [self.online], Source.CRM: [self.crm]},
            bundles=[(self.bundles, lineage)],  # without the index of whom they hold, all of them
            evidence=decision.evidence,
        )
        return PermissionOut(
            permission=source,
            state=decision.state,
            recorded=done.recorded,
            profile_rows_purged=done.profile_rows_purged,
            links_dissolved=done.links_dissolved,
            bundles_stopping=len(done.bundles),
        )

    def in_use(self) -> dict[str, str]:
        """The digest of the bundle in use, by tier. Asks neither ledger nor stores."""
        current = self.recommender.current
        digests = {str(tier): scorer.digest for tier, scorer in current.scorers.items()}
        if current.popular is not None:
            digests["popular"] = current.popular.digest
        return digests

    def ready(self) -> Ready:
        """Which tiers can answer now. Waits for the ledger no longer than a recommendation does."""
        digests, current = self.in_use(), self.recommender.current
        return Ready(
            ready=bool(digests),
            tiers=digests,
            problems={str(tier): problem for tier, problem in current.problems.items()},
            ledger="failing" if current.ledger_problem() else "ok",
        )


@contextlib.contextmanager
def opened(
    bundles: Path, state: Path, catalogue: Catalogue | None, *, reload_every: float = 60.0
) -> Iterator[Parts]:
    """Open all parts, and close them at the end.

    Parameters
    ----------
    bundles
        What `consentier train --out` wrote.
    state
        The directory of ledger and stores; made if it is missing.
    catalogue
        What may be shown now.
    reload_every
        Seconds between two looks at the bundles.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(f"sqlite:///{(state / 'consents.db').absolute()}"))
        online = SqliteProfiles(state / "online.db", ttl=dt.timedelta(days=90))
        stack.callback(online.close)
        crm = SqliteProfiles(state / "crm.db", ttl=dt.timedelta(days=730))
        stack.callback(crm.close)
        recommender = ReloadingRecommender(
            bundles,
            every=reload_every,
            catalogue=catalogue,
            ledger=ledger,
            profiles=Profiles(online=online, crm=crm, attributes=crm.attributes),
        )
        stack.enter_context(recommender)
        yield Parts(ledger, online, crm, recommender, CollectorRegistry(), bundles)


_MOST_TOLD = 20
"""How many of a body's mistakes are told."""


def _told(part: str | int) -> str | int:
    """Part of a place in a body: a key may be long, or hold half a surrogate pair, which no answer can."""
    return part if isinstance(part, int) else part[:100].encode("utf-8", "replace").decode()


class _ShortBodies:
    """Stops reading a body that is too long, whatever its header says of its length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, counted, send)


# ---- The service -------------------------------------------------------------------------------------------


def create_app(parts: Parts, *, threads: int = 4) -> FastAPI:
    """The service over its parts.

    Parameters
    ----------
    parts
        Ledger, stores, recommender. Whoever opened them closes them.
    threads
        How many recommendations may be found at once.
    """
    measured = MeasuredRecommender(parts.recommender, prometheus_observer(parts.registry))
    answering = AsyncRecommender(measured, threads=threads)
    loaded = Gauge(
        "consentier_tier_loaded",
        "Whether the tier has a bundle in use (1) or not (0)",
        ("tier",),
        registry=parts.registry,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with answering:
            yield

    # The pages of Swagger and ReDoc load scripts from elsewhere: /openapi.json says the same.
    app = FastAPI(
        title="Consentier reference service",
        version=consentier.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )

    @app.exception_handler(RequestValidationError)
    def refused(_: Request, error: RequestValidationError) -> JSONResponse:
        """Says what is wrong where, and quotes nothing: the framework's own answer sends back what came."""
        found = [
            {"loc": [_told(part) for part in each["loc"]], "msg": each["msg"], "type": each["type"]}
            for each in error.errors()[:_MOST_TOLD]
        ]
        return JSONResponse({"detail": found}, status_code=422)

    @app.exception_handler(ConsentierError)
    def failed(_: Request, error: ConsentierError) -> JSONResponse:
        """A ledger or store failed while something was to be written. What it says may quote a person."""
        _log.error("a request was not carried out: %s", type(error).__name__)
        return JSONResponse({"detail": f"not done: {type(error).__name__}; try again"}, status_code=503)

    app.add_middleware(_ShortBodies)

    @app.middleware("http")
    async def not_kept(request: Request, call_next: Any) -> Response:
        """No cache keeps what was said about somebody."""
        response: Response = await call_next(request)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.post("/recommendations", summary="Recommend from the best tier that the permissions allow")
    async def recommendations(asked: RecommendationsIn) -> RecommendationsOut:
        return RecommendationsOut.of(await answering.recommend(asked.request()))

    # Not async: what waits for a disk runs in a thread of the framework's own.
    @app.post("/events", summary="Store what happened, if it is permitted")
    def events(happened: EventIn) -> EventOut:
        event = Event(happened.item_id, happened.ts, happened.event_type, happened.quantity)
        seen = parts.recommender.current.observe(
            event, visitor_id=happened.visitor_id, customer_id=happened.customer_id
        )
        return EventOut(**dataclasses.asdict(seen))

    @app.put("/permissions", summary="Grant or withdraw: a visitor's online, a customer's CRM permission")
    def permissions(decision: PermissionIn) -> PermissionOut:
        return parts.decide(decision)

    @app.post("/links", summary="A login: link visitor and customer, if both permissions hold")
    def links(login: LinkIn) -> LinkOut:
        now = dt.datetime.now(dt.UTC)
        persons = login.visitor_id, login.customer_id
        noted = parts.ledger.login(*persons, at=now, evidence="login")
        # On a device that others used, or that was parted from its customer, a login joins nobody.
        state = parts.ledger.resolve(visitor_id=persons[0], customer_id=persons[1], at=now)
        return LinkOut(linked=noted and state.linked)

    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether it can answer, and from which tiers")
    def ready(response: Response) -> Ready:
        state = parts.ready()
        response.status_code = 200 if state.ready else 503
        return state

    @app.get("/metrics", summary="For Prometheus", response_class=Response)
    def metrics() -> Response:
        in_use = parts.in_use()
        for tier in TIERS:
            loaded.labels(str(tier)).set(str(tier) in in_use)
        return Response(generate_latest(parts.registry), media_type=CONTENT_TYPE_LATEST)

    return app
