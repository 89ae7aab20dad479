"""The router and embedded recommender: one call inside a shop's service.

The path of a request: resolve the permission (ledger, intersected with what the request says) → route by the
policy → for each tier of the route, cut out the permitted view → score → fill up from the popular list.
Whatever fails on the way lowers the tier, never raises it, and stands in the answer's reasons.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from consentier.consent import (
    Policy,
    Resolution,
    Route,
    Side,
    Source,
    State,
    Tier,
    microseconds,
    sources_of,
)
from consentier.errors import BundleError, BundleMissing
from consentier.models.bundle import open_bundle
from consentier.serving.answer import Answer, Basis
from consentier.serving.catalogue import Catalogue
from consentier.serving.request import Event, Request
from consentier.serving.scorer import LinearScorer, PopularScorer, Query, Scored
from consentier.serving.view import PermittedView, Profiles, view_of

__all__ = ["ConsentLedger", "Recommender"]

_log = logging.getLogger("consentier.serving")

_NOBODY = PermittedView(frozenset())


class ConsentLedger(Protocol):
    """What the recommender asks of a ledger."""

    def resolve(
        self,
        *,
        visitor_id: str | None = None,
        customer_id: str | None = None,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
    ) -> Resolution:
        """Resolve visitor and customer at an instant."""
        ...

    def linked_visitors(
        self, customer_id: str, *, at: dt.datetime, known_at: dt.datetime | None = None
    ) -> Sequence[str]:
        """The visitors whose link with a customer holds at an instant."""
        ...


@dataclasses.dataclass(frozen=True)
class Recommender:
    """Answers requests from the tier that the customer's permissions allow.

    Immutable after loading, and safe to call from any number of threads.

    Attributes
    ----------
    scorers
        The linear models by tier.
    popular
        The non-personal list; None where its bundle is missing.
    policy
        The routing matrix.
    ledger
        Whom to ask about permissions; None: permissions are what each request declares.
    profiles
        Where to find histories that a request does not bring.
    problems
        Why a tier has no model, by tier.
    audit_key
        Key of the input digests. By default drawn anew for each recommender.
    """

    scorers: Mapping[Tier, LinearScorer]
    popular: PopularScorer | None
    policy: Policy
    ledger: ConsentLedger | None = None
    profiles: Profiles | None = None
    problems: Mapping[Tier, str] = dataclasses.field(default_factory=dict)
    audit_key: bytes = dataclasses.field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    def load(
        cls,
        bundles: str | Path,
        *,
        ledger: ConsentLedger | None = None,
        policy: Policy | str | Path | None = None,
        profiles: Profiles | None = None,
        catalogue: Catalogue | Mapping[str, Mapping[str, Any]] | Iterable[str] | str | Path | None = None,
        audit_key: bytes | None = None,
    ) -> Recommender:
        """Open the bundles of a directory: ``session``, ``online``, ``crm``, ``fused`` and ``popular``.

        A bundle that is missing, altered or in the wrong slot lowers the answers that would have used it; the
        reason stands in `problems`, in the log, and in those answers.

        Parameters
        ----------
        bundles
            The directory that ``consentier train --out`` wrote.
        ledger
            The consent ledger. Without one, permissions are what each request declares.
        policy
            A policy or the path of one; the default policy otherwise.
        profiles
            Stores of histories; histories in a request take precedence.
        catalogue
            What may be shown now: see `Catalogue.of`. Without one, all items of the bundles.
        audit_key
            Key of the input digests, to compare them across processes.

        Raises
        ------
        BundleMissing
            If the directory holds no bundle at all.
        DataError, PolicyError
            If catalogue or policy cannot be read.

        Notes
        -----
        Costs one pass over the bundles' bytes, to verify their digests.
        """
        root = Path(bundles)
        if not root.is_dir():
            raise BundleMissing(f"{root}: there is no such directory; 'consentier train' writes one")
        known = None if catalogue is None else Catalogue.of(catalogue)
        scorers: dict[Tier, LinearScorer] = {}
        problems: dict[Tier, str] = {}
        popular = None
        for tier in (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR):
            try:
                bundle = open_bundle(root / tier)
                if bundle.manifest.tier != tier:
                    raise BundleError(f"the bundle in the {tier} slot declares tier {bundle.manifest.tier}")
                if tier is Tier.POPULAR:
                    popular = PopularScorer(bundle, known)
                else:
                    scorers[tier] = LinearScorer(bundle, known)
            except (BundleError, KeyError, ValueError, OSError) as error:
                problems[tier] = str(error)
                _log.warning("the %s tier has no model: %s", tier, error)
        if not scorers and popular is None:
            details = "; ".join(f"{tier}: {problem}" for tier, problem in problems.items())
            raise BundleMissing(f"{root}: no bundle can be used: {details}")
        if not isinstance(policy, Policy):
            policy = Policy.default() if policy is None else Policy.load(policy)
        return cls(
            scorers=MappingProxyType(scorers),
            popular=popular,
            policy=policy,
            ledger=ledger,
            profiles=profiles,
            problems=MappingProxyType(problems),
            audit_key=secrets.token_bytes(32) if audit_key is None else audit_key,
        )

    def recommend(self, request: Request) -> Answer:
        """Answer a request from the best tier that its permission allows.

        Faults of bundles, stores and ledger never escape: they lower the tier.

        Raises
        ------
        TypeError
            If `request` is not a `Request`.
        """
        if not isinstance(request, Request):
            raise TypeError(f"recommend takes a consentier.Request, not {type(request).__name__}")
        resolution, reasons = self._resolve(request)
        route = self.policy.route(resolution, request.channel, vouched=request.linked)
        query = _query(request, route.side)
        passed_over = list(reasons)
        for tier in route.tiers:
            if tier is Tier.POPULAR:
                continue  # it fills up every list, this one from the first place on
            view, scored, problem = self._try(tier, request, resolution, route, query)
            if scored is not None and scored.items:
                return self._answer(tier, scored, view, request, resolution, route, query, passed_over)
            passed_over.append(f"{tier}: {problem}")
        if not route.tiers:
            return self._nothing(request, resolution, route, passed_over)
        nothing = Scored((), ())
        return self._answer(Tier.POPULAR, nothing, _NOBODY, request, resolution, route, query, passed_over)

    def similar(self, item_id: str, *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """Items like one item. Reads no person."""
        if not isinstance(item_id, str):
            raise TypeError(f"similar takes an item id, not {type(item_id).__name__}")
        return self.basket((item_id,), n=n, exclude=exclude)

    def basket(self, items: Iterable[str], *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """Items that go with a basket, whoever holds it. Reads no person."""
        request = Request(session=items, n=n, exclude=exclude)
        route = Route(
            State.NONE, Side.ONLINE, (Tier.SESSION, Tier.POPULAR), ("asked about items, not about a person",)
        )
        wanted = frozenset(event.item_id for event in request.session if isinstance(event, Event))
        query = dataclasses.replace(_query(request, Side.ONLINE), exclude=frozenset(request.exclude) | wanted)
        scorer = self.scorers.get(Tier.SESSION)
        scored = None if scorer is None else scorer.related(wanted, query)
        reasons: list[str] = []
        if scored is None or not scored.items:
            reasons.append(f"session: {self.problems.get(Tier.SESSION, 'the model knows none of the items')}")
            tier, scored = Tier.POPULAR, Scored((), ())
        else:
            tier = Tier.SESSION
        return self._answer(tier, scored, _NOBODY, request, Resolution(), route, query, reasons)

    def _resolve(self, request: Request) -> tuple[Resolution, tuple[str, ...]]:
        permission = request.permission
        if self.ledger is None:
            if permission is None:
                return Resolution(reasons=("no permission declared and no ledger",)), ()
            return Resolution.declared(permission, linked=request.linked), ()
        try:
            resolution = self.ledger.resolve(
                visitor_id=request.visitor_id,
                customer_id=request.customer_id,
                at=request.at if request.at is not None else dt.datetime.now(dt.UTC),
            )
            if not isinstance(resolution, Resolution):
                raise TypeError(f"the ledger returned {type(resolution).__name__}")
        except Exception as error:  # noqa: BLE001 - a store's fault, whatever it is, denies and is reported
            _log.warning("the consent ledger failed: %s", type(error).__name__)
            return Resolution(reasons=("the consent ledger failed",)), (f"ledger: {type(error).__name__}",)
        if permission is None:
            return resolution, ()
        return resolution.intersected(permission), ()

    def _try(
        self, tier: Tier, request: Request, resolution: Resolution, route: Route, query: Query
    ) -> tuple[PermittedView, Scored | None, str]:
        """One tier's attempt: the view it read, what it found, and why nothing, if so."""
        scorer = self.scorers.get(tier)
        if scorer is None:
            return _NOBODY, None, self.problems.get(tier, "there is no model")
        try:
            view = view_of(
                request,
                sources_of(tier, route.side),
                self.profiles,
                self._devices(tier, request),
            )
            scored = scorer.answer(view, query)
        except Exception as error:  # noqa: BLE001 - a store's or model's fault lowers the tier and is reported
            _log.warning("the %s tier failed: %s", tier, type(error).__name__)
            return _NOBODY, None, f"failed with {type(error).__name__}"
        if scored is None:
            return view, None, "the permitted history holds nothing that the model knows"
        return view, scored, "nothing that may be shown has a score"

    def _devices(self, tier: Tier, request: Request) -> Sequence[str] | None:
        """Fused reads the union over the linked devices; every other tier, the request's own device."""
        if tier is not Tier.FUSED or self.ledger is None or self.profiles is None:
            return None
        if request.customer_id is None:
            return None
        at = request.at if request.at is not None else dt.datetime.now(dt.UTC)
        return self.ledger.linked_visitors(request.customer_id, at=at)

    def _answer(
        self,
        tier: Tier,
        scored: Scored,
        view: PermittedView,
        request: Request,
        resolution: Resolution,
        route: Route,
        query: Query,
        passed_over: Sequence[str],
    ) -> Answer:
        missing = query.n - len(scored.items)
        filling: list[str] = []
        if missing and self.popular is not None:
            shown = frozenset(scored.items) | _not_again(tier, self.scorers, view, query)
            filling = self.popular.top(dataclasses.replace(query, n=missing), without=shown)
        if not scored.items and not filling:
            return self._nothing(
                request, resolution, route, [*passed_over, "popular: there is nothing to show"]
            )
        return Answer(
            items=(*scored.items, *filling),
            scores=(*scored.scores, *(0.0,) * len(filling)),
            tier=tier,
            basis=self._basis(
                tier, view, request, resolution, route, passed_over,
                fill_digest=self.popular.digest if filling and self.popular is not None else None,
                unknown_items=scored.unknown_items,
                filled=len(filling),
            ),
        )  # fmt: skip

    def _nothing(
        self, request: Request, resolution: Resolution, route: Route, passed_over: Sequence[str]
    ) -> Answer:
        basis = self._basis(Tier.NONE, _NOBODY, request, resolution, route, passed_over)
        return Answer((), (), Tier.NONE, basis)

    def _basis(
        self,
        tier: Tier,
        view: PermittedView,
        request: Request,
        resolution: Resolution,
        route: Route,
        passed_over: Sequence[str],
        *,
        fill_digest: str | None = None,
        unknown_items: int = 0,
        filled: int = 0,
    ) -> Basis:
        scorer = self.scorers.get(tier)
        return Basis(
            reason=f"{'; '.join(route.reasons)}: {_WHAT[tier]}",
            reasons=(*resolution.reasons, *route.reasons, *passed_over),
            state=route.state,
            side=route.side,
            policy_version=self.policy.version,
            bundle_digest=None if scorer is None else scorer.digest,
            fill_digest=fill_digest,
            sources=tuple(sorted(view.sources)),
            input_digests=self._digests(view) if resolution.permission.level > 1 else {},
            ledger_position=resolution.ledger_position,
            contact=None if resolution.contact is None else tuple(sorted(resolution.contact)),
            unknown_items=unknown_items,
            filled=filled,
            at=None if request.at is None else request.at.astimezone(dt.UTC).isoformat(),
        )

    def _digests(self, view: PermittedView) -> dict[str, str]:
        inputs: dict[str, Any] = {}
        if Source.SESSION in view.sources:
            inputs["session"] = [_plain(event) for event in view.session]
        if Source.ONLINE in view.sources:
            inputs["online"] = [_plain(event) for event in view.online_history]
        if Source.CRM in view.sources:
            inputs["crm"] = [_plain(event) for event in view.crm_history]
            inputs["attributes"] = dict(view.attributes)
        return {name: self._digest(name, value) for name, value in inputs.items()}

    def _digest(self, name: str, value: object) -> str:
        text = json.dumps([name, value], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hmac.new(self.audit_key, text.encode("ascii"), hashlib.sha256).hexdigest()


_WHAT = {
    Tier.SESSION: "answered from the running session",
    Tier.ONLINE: "answered from online data",
    Tier.CRM: "answered from CRM data",
    Tier.FUSED: "answered from online and CRM data together",
    Tier.POPULAR: "answered with what is popular",
    Tier.NONE: "not answered",
}


def _query(request: Request, side: Side) -> Query:
    return Query(
        n=request.n,
        side=side,
        placement=request.placement,
        exclude=frozenset(request.exclude),
        allow=None if request.allow is None else frozenset(request.allow),
    )


def _not_again(
    tier: Tier, scorers: Mapping[Tier, LinearScorer], view: PermittedView, query: Query
) -> frozenset[str]:
    """Items of the permitted history that must not come back as filling either."""
    scorer = scorers.get(tier)
    return frozenset() if scorer is None else scorer.not_again(view, query)


def _plain(event: Event) -> list[Any]:
    moment = None if event.ts is None else microseconds(event.ts)
    return [event.item_id, moment, event.event_type, event.quantity]
