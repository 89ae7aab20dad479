"""The router and embedded recommender: one call inside a shop's service.

The path of a request: resolve the permission (ledger, intersected with what the request says) → route by the
policy → for each tier of the route, cut out the permitted view → score → fill up from the popular list.
A bundle past its withdrawal deadline does not answer. Whatever fails on the way lowers the tier, never raises
it, and stands in the answer's reasons.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, cast

from consentier.consent import (
    Channel,
    Permission,
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
from consentier.serving.answer import Answer, Basis
from consentier.serving.clock import utc_now
from consentier.serving.explanations import FILLED, TRENDING, Explanation
from consentier.serving.exploration import new_seed, renewed
from consentier.serving.guarded_ledger import LEDGER_SECONDS, GuardedLedger
from consentier.serving.item_columns import Expression, FilterError
from consentier.serving.loading import CatalogueSource, OpenedBundles, open_bundles, read_shop_rules
from consentier.serving.main_parameters import trending_parameter
from consentier.serving.observing import OBSERVE_SECONDS, Observed, observe
from consentier.serving.patience import StoreUnread
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.protocols import AuditSink, ConsentLedger, InputKeys
from consentier.serving.query import Query, Scored
from consentier.serving.request import Event, Request
from consentier.serving.revocation import Deadlines, Revocations
from consentier.serving.routing import read_routing
from consentier.serving.rules import Rules
from consentier.serving.scorer import ItemScorer
from consentier.serving.trending import Counting, Trending, TrendingSnapshot, Trends
from consentier.serving.view import PermittedView, Profiles, view_of

__all__ = [
    "AuditSink",
    "ConsentLedger",
    "InputKeys",
    "Recommender",
    "answer_reason",
    "input_text",
    "policy_of",
    "utc_now",
]

_log = logging.getLogger("consentier.serving")

# Why a better tier did not answer, where nothing went wrong; and what begins the reasons of other faults.
NOTHING_KNOWN = "the permitted history holds nothing that the model knows"
NOTHING_TO_SHOW = "nothing that may be shown has a score"
NOTHING_TO_FILL = "there is nothing to show"
EXPLORATION_FAULT = "exploration"

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":"))
_NOBODY = PermittedView(frozenset())
_NO_ITEMS = Scored((), ())

# Immutable, and there are few.
_declared = functools.cache(Resolution.declared)

# The states in which the session of a visit may leave a trace in the answer's basis.
_ONLINE_STATES = frozenset({State.ONLINE, State.BOTH_LINKED, State.BOTH_UNLINKED})


class _Found(NamedTuple):
    """What one tier found, and all that the rest of the answer needs to know of the person."""

    tier: Tier
    view: PermittedView = _NOBODY
    scored: Scored = _NO_ITEMS
    digests: Mapping[str, str] = MappingProxyType({})


class _Asked(NamedTuple):
    """One request, and all that is decided about it before a tier is asked."""

    request: Request
    instant: dt.datetime
    """Whose permissions and deadlines count. A request for the past revives neither: it is one of now."""
    resolution: Resolution
    route: Route
    query: Query
    passed_over: list[str]
    deadlines: Deadlines

    def stopped(self, digest: str) -> str:
        """Why a bundle may not answer; empty if it may."""
        return self.deadlines.problem_of(digest, self.instant)


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
    ledger_deadline
        For how many seconds a request waits for the ledger, and how often in vain: see
        `consentier.serving.patience`.
    guarded
        The ledger as requests ask it. It is made where none is given for the ledger.
    profiles
        Where to find histories that a request does not bring.
    problems
        Why a tier has no model, by tier; or why it still has the one it had, where bundles are reloaded.
    audit_key
        Key of the input digests. By default drawn anew for each recommender.
    keyring
        Keys of the input digests, in place of `audit_key`; each digest then says under which key it was made.
    revocations
        The withdrawal deadlines of the bundles, looked up before each answer (2 µs); None: there are none.
    audit
        Gets each request with its answer.
    clock
        Says what time it is.
    trending
        What takes a share of what the popular list gives on the online side; None: nothing does.
    exploration_seed
        Draws the seed of each request where rules explore; None: nothing is explored.

    Raises
    ------
    TypeError, ValueError
        If `audit_key` is not bytes, or empty, or `ledger_deadline` is no positive number of seconds.
    """

    scorers: Mapping[Tier, ItemScorer]
    popular: PopularScorer | None
    policy: Policy
    ledger: ConsentLedger | None = None
    profiles: Profiles | None = None
    problems: Mapping[Tier, str] = dataclasses.field(default_factory=dict)
    audit_key: bytes = dataclasses.field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    keyring: InputKeys | None = dataclasses.field(default=None, repr=False)
    revocations: Revocations | None = None
    audit: AuditSink | None = None
    clock: Callable[[], dt.datetime] = utc_now
    trending: Trends | None = None
    exploration_seed: Callable[[], str] | None = new_seed
    ledger_deadline: float = LEDGER_SECONDS
    guarded: GuardedLedger | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.audit_key, bytes):
            raise TypeError(f"audit_key must be bytes, not {type(self.audit_key).__name__}")
        if not self.audit_key:
            raise ValueError("audit_key is empty: digests without a key can be guessed; give a secret one")
        object.__setattr__(self, "guarded", _guarded(self.ledger, self.ledger_deadline, self.guarded))

    @classmethod
    def load(
        cls,
        bundles: str | Path,
        *,
        ledger: ConsentLedger | None = None,
        ledger_deadline: float = LEDGER_SECONDS,
        policy: Policy | str | Path | None = None,
        profiles: Profiles | None = None,
        profile_deadline: float | None = None,
        catalogue: CatalogueSource | None = None,
        rules: Rules | str | Path | None = None,
        filter_by: Iterable[str] = (),
        audit_key: bytes | None = None,
        keyring: InputKeys | None = None,
        audit: AuditSink | None = None,
        clock: Callable[[], dt.datetime] = utc_now,
        trending: Trends | None = None,
        compiled: bool = True,
    ) -> Recommender:
        """Open the bundles of a directory: ``session``, ``online``, ``crm``, ``fused`` and ``popular``.

        A bundle that is missing, altered, in the wrong slot or past its withdrawal deadline lowers the
        answers that would have used it; the reason stands in `problems`, in the log, and in those answers.

        Parameters
        ----------
        bundles
            The directory that ``consentier train --out`` wrote.
        ledger
            The consent ledger. Without one, permissions are what each request declares.
        ledger_deadline
            For how many seconds a request waits for an answer of the ledger before it is answered as if
            nothing were permitted. Where the fused tier may answer, it may wait twice: once for the devices.
        policy
            A policy or the path of one; the default policy otherwise. Where a model registry has decided that
            fused is not worth it, it applies without fused: see `serving.routing`.
        profiles
            Stores of histories; histories in a request take precedence.
        profile_deadline
            For how many seconds a request waits for an answer of each of these stores (default: 0.02) before
            a lower tier answers without it. Where that tier reads the store too, it may wait once more.
        catalogue
            What may be shown now: see `Catalogue.of`. Without one, all items of the bundles.
        rules
            The shop's business rules, or the path of a TOML file of them: see `serving.rules`.
        filter_by
            Attributes of items that requests may filter by (`where`). Of a catalogue that is read here, no
            others are kept but those that rules name, and what items are called. A `Catalogue` brings its
            attributes: requests may filter by all of them.
        audit_key, keyring
            Key of the input digests, or a keyring of them, to compare digests across processes.
        audit
            Where each answer is accounted for.
        clock
            Says what time it is, for withdrawal deadlines and for requests that name no instant.
        trending
            Counts of what is asked for right now, which `observe` fills: see `serving.trending`.
        compiled
            Score in compiled loops where Numba is installed (extra ``fast``); answers are the same, bit for
            bit. They are ready when this returns, so that no request waits for a compiler. False: NumPy, and
            Numba is not imported.

        Raises
        ------
        BundleMissing
            If the directory holds no bundle that can be used.
        DataError, PolicyError, ConfigError
            If catalogue, policy or rules cannot be read, or rules or `filter_by` name attributes that
            items do not have.
        TypeError, ValueError
            If there are two kinds of keys, or `audit_key`, `ledger_deadline` or `profile_deadline` is not
            what it should be.

        Notes
        -----
        Costs one pass over the bundles' bytes, to verify their digests, and once a process what it takes to
        get compiled loops ready (docs/benchmarks.md).
        """
        root = Path(bundles)
        revocations = Revocations.open(root)
        known, chosen = read_shop_rules(catalogue, rules, filter_by)
        return cls.over(
            open_bundles(root, known, chosen, revocations.current(), clock(), compiled=compiled),
            revocations,
            ledger=ledger,
            ledger_deadline=ledger_deadline,
            policy=read_routing(root).applied_to(policy_of(policy)),
            profiles=profiles,
            profile_deadline=profile_deadline,
            audit_key=audit_key,
            keyring=keyring,
            audit=audit,
            clock=clock,
            trending=trending,
        )

    @classmethod
    def over(
        cls,
        opened: OpenedBundles,
        revocations: Revocations,
        *,
        ledger: ConsentLedger | None = None,
        ledger_deadline: float = LEDGER_SECONDS,
        policy: Policy | str | Path | None = None,
        profiles: Profiles | None = None,
        profile_deadline: float | None = None,
        audit_key: bytes | None = None,
        keyring: InputKeys | None = None,
        audit: AuditSink | None = None,
        clock: Callable[[], dt.datetime] = utc_now,
        trending: Trends | None = None,
    ) -> Recommender:
        """A recommender over bundles that are open already; all else is as in `load`."""
        if audit_key is not None and keyring is not None:
            raise ValueError("give audit_key or keyring, not both: a digest is made under one key")
        if profiles is not None and profile_deadline is not None:
            profiles = profiles.within(profile_deadline)
        return cls(
            scorers=opened.scorers,
            popular=opened.popular,
            policy=policy_of(policy),
            ledger=ledger,
            ledger_deadline=ledger_deadline,
            profiles=profiles,
            problems=opened.problems,
            audit_key=secrets.token_bytes(32) if audit_key is None else audit_key,
            keyring=keyring,
            revocations=revocations,
            audit=audit,
            clock=clock,
            trending=trending,
        )

    def recommend(self, request: Request) -> Answer:
        """Answer a request from the best tier that its permission allows.

        Faults of bundles, stores, ledger and audit never escape: they lower the tier, or are logged.

        Raises
        ------
        TypeError
            If `request` is not a `Request`.
        FilterError
            If its filter names an attribute that items do not have. It is a ValueError.
        """
        if not isinstance(request, Request):
            raise TypeError(f"recommend takes a consentier.Request, not {type(request).__name__}")
        return self._answered(self._decided(request))

    def recommend_through(self, request: Request, choose: Callable[[Route], Recommender]) -> Answer:
        """Decide here what is permitted and who may answer, and have another recommender answer.

        Parameters
        ----------
        request
            As in `recommend`.
        choose
            Gets the route that was decided, and returns the recommender whose bundles, deadlines and audit
            count. The policy that counts is this one's.

        Raises
        ------
        TypeError
            If `request` is not a `Request`.
        """
        if not isinstance(request, Request):
            raise TypeError(f"recommend takes a consentier.Request, not {type(request).__name__}")
        asked = self._decided(request)
        other = choose(asked.route)
        if other.policy is not self.policy and other.policy != self.policy:
            other = dataclasses.replace(other, policy=self.policy)  # the answer names the policy that chose
        return other._answered(asked._replace(deadlines=other._deadlines()))

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
        now = self.clock()
        query = dataclasses.replace(
            _query(request, Side.ONLINE, now), exclude=frozenset(request.exclude) | wanted
        )
        asked = self._asked(request, now, Resolution(), route, query)
        found, problem = self._related(wanted, asked)
        if problem:
            asked.passed_over.append(f"{Tier.SESSION}: {problem}")
        return self._accounted(request, self._answer(found, asked) or self._nothing(asked))

    def ledger_problem(self) -> str:
        """Ask the ledger, as a request does but about nobody; say why it cannot be asked, or nothing.

        It says nothing where there is no ledger, too. Waits as long as a request does.
        """
        if self.guarded is None:
            return ""
        try:
            self.guarded.resolve(at=self.clock())
        except StoreUnread as unread:
            return str(unread)
        return ""

    def stopped_bundles(self, at: dt.datetime) -> dict[str, str]:
        """Why each bundle may not answer at an instant, by its digest; empty where it may.

        An instant that is past counts as now.
        """
        moment, deadlines = max(self.clock(), at), self._deadlines()
        digests = [scorer.digest for scorer in self.scorers.values()]
        digests += [] if self.popular is None else [self.popular.digest]
        return {digest: deadlines.problem_of(digest, moment) for digest in digests}

    def observe(
        self,
        event: Event,
        *,
        visitor_id: str | None = None,
        customer_id: str | None = None,
        permission: Permission | None = None,
        at: dt.datetime | None = None,
    ) -> Observed:
        """Store and count what has just happened, if that is permitted, so that the next request knows of it.

        See `consentier.serving.observing.observe`, which gets this recommender's ledger, stores and clock.
        """
        return observe(
            event,
            visitor_id=visitor_id,
            customer_id=customer_id,
            permission=permission,
            at=at,
            ledger=None
            if self.guarded is None
            else self.guarded.within(max(self.ledger_deadline, OBSERVE_SECONDS)),
            profiles=self.profiles,
            clock=self.clock,
            counting=self._counting(),
        )

    def _counting(self) -> Counting | None:
        """Where events count; nowhere if there is no popular list that could show what is trending."""
        if self.popular is None or not isinstance(self.trending, Trending):
            return None
        return Counting(self.trending, self.popular.shows, self.policy.switches.model_purpose)

    def _decided(self, request: Request) -> _Asked:
        """What is permitted, and who may answer: all that is decided before a model is asked."""
        now = self.clock()
        instant = now if request.at is None else max(now, request.at)
        resolution, reasons = self._resolve(request, instant)
        route = self.policy.route(resolution, cast("Channel", request.channel), vouched=request.linked)
        asked = self._asked(request, instant, resolution, route, _query(request, route.side, instant))
        asked.passed_over.extend(reasons)
        return asked

    def _answered(self, asked: _Asked) -> Answer:
        return self._accounted(asked.request, self._routed(asked))

    def _asked(
        self, request: Request, instant: dt.datetime, resolution: Resolution, route: Route, query: Query
    ) -> _Asked:
        return _Asked(
            request=request,
            instant=instant,
            resolution=resolution,
            route=route,
            query=query,
            passed_over=[],
            deadlines=self._deadlines(),
        )

    def _deadlines(self) -> Deadlines:
        return Deadlines() if self.revocations is None else self.revocations.current()

    def _routed(self, asked: _Asked) -> Answer:
        """The answer of the first tier of the route that has one."""
        for tier in asked.route.tiers:
            if tier is Tier.POPULAR:
                found, problem = _Found(tier), ""  # the list itself is what fills up
            else:
                found, problem = self._try(tier, asked)
            if not problem:
                answer = self._answer(found, asked)
                if answer is not None:
                    return self._explored(answer, found, asked)
            else:
                asked.passed_over.append(f"{tier}: {problem}")
        return self._nothing(asked)

    def _explored(self, answer: Answer, found: _Found, asked: _Asked) -> Answer:
        """The answer with what is new in some of its slots, where the shop's rules say so."""
        popular, seed = self.popular, self.exploration_seed
        if popular is None or seed is None or not popular.explores or asked.query.side is not Side.ONLINE:
            return answer
        try:
            if asked.stopped(popular.digest):
                return answer
            listed, drawn = popular.explored(
                answer.items, asked.query, seed(), without=found.scored.not_again
            )
            return answer if drawn is None else renewed(answer, listed, drawn, popular.digest)
        except FilterError:  # the caller's fault
            raise
        except Exception as error:  # noqa: BLE001 - without anything new, the answer stands
            problem = f"{EXPLORATION_FAULT}: {_fault(Tier.POPULAR, error)}"
            basis = dataclasses.replace(answer.basis, reasons=(*answer.basis.reasons, problem))
            return dataclasses.replace(answer, basis=basis)

    def _accounted(self, request: Request, answer: Answer) -> Answer:
        """The answer, after the audit has been told of it."""
        if self.audit is not None:
            try:
                self.audit.write(request, answer)
            except Exception as error:  # noqa: BLE001 - a sink's fault, whatever it is, fails no request
                _log.error("the audit sink failed: %s", type(error).__name__)
        return answer

    def _related(self, items: frozenset[str], asked: _Asked) -> tuple[_Found, str]:
        """What goes with some items; nothing, and why, if the model cannot tell."""
        scorer = self.scorers.get(Tier.SESSION)
        if scorer is None:
            return _Found(Tier.POPULAR), self.problems.get(Tier.SESSION, "there is no model")
        try:
            if problem := asked.stopped(scorer.digest):
                return _Found(Tier.POPULAR), problem
            scored = scorer.related(items, asked.query)
        except FilterError:  # the caller's fault
            raise
        except Exception as error:  # noqa: BLE001 - a model's fault lowers the tier and is reported
            return _Found(Tier.POPULAR), _fault(Tier.SESSION, error)
        if scored is None or not scored.items:
            return _Found(Tier.POPULAR), "the model knows nothing that goes with these items"
        return _Found(Tier.SESSION, scored=scored), ""

    def _resolve(self, request: Request, instant: dt.datetime) -> tuple[Resolution, tuple[str, ...]]:
        permission = request.permission
        if self.guarded is None:
            if permission is None:
                return Resolution(reasons=("no permission declared and no ledger",)), ()
            return _declared(permission, linked=request.linked), ()
        try:
            resolution = self.guarded.resolve(
                visitor_id=request.visitor_id,
                customer_id=request.customer_id,
                at=instant,
            )
        except StoreUnread as unread:  # whatever the ledger's fault is
            _log.warning("the consent %s", unread)
            return Resolution(reasons=("the consent ledger failed",)), (str(unread),)
        if permission is None:
            return resolution, ()
        return resolution.intersected(permission), ()

    def _try(self, tier: Tier, asked: _Asked) -> tuple[_Found, str]:
        """One tier's attempt: what it found, or why it found nothing."""
        request, route = asked.request, asked.route
        scorer = self.scorers.get(tier)
        if scorer is None:
            return _Found(tier), self.problems.get(tier, "there is no model")
        try:
            if problem := asked.stopped(scorer.digest):
                return _Found(tier), problem
            sources = sources_of(tier, route.side)
            view = view_of(
                request,
                sources,
                self.profiles,
                self._devices(tier, request, asked.instant),
                online_since=asked.resolution.online_since,
                crm_since=asked.resolution.crm_since,
            )
            scored = scorer.answer(view, asked.query)
            if scored is None:
                return _Found(tier), NOTHING_KNOWN
            if not scored.items:
                return _Found(tier), NOTHING_TO_SHOW
            # All that a store's data can still upset is done here, where a fault lowers the tier.
            digests = self.input_digests(view, route.state)
            return _Found(tier, view, scored, digests), ""
        except FilterError:  # the caller's fault
            raise
        except StoreUnread as unread:
            _log.warning("the %s tier: %s", tier, unread)
            return _Found(tier), str(unread)
        except Exception as error:  # noqa: BLE001 - a store's or model's fault lowers the tier and is reported
            return _Found(tier), _fault(tier, error)

    def _devices(self, tier: Tier, request: Request, instant: dt.datetime) -> Mapping[str, int] | None:
        """Fused reads the union over the linked devices; every other tier, the request's own device."""
        if tier is not Tier.FUSED or self.guarded is None or self.profiles is None:
            return None
        if request.customer_id is None:
            return None
        return self.guarded.linked_since(
            request.customer_id, at=instant, fusion_purpose=self.policy.switches.fusion_purpose
        )

    def _answer(self, found: _Found, asked: _Asked) -> Answer | None:
        """A tier's items, filled up from the popular list where the policy names it; None without any."""
        items, scores = found.scored.items, found.scored.scores
        filling: Sequence[str] = ()
        trending = self._trending(asked.query.side)
        if len(items) < asked.query.n and Tier.POPULAR in asked.route.tiers:
            filling, problem = self._fill(found, asked, trending)
            if problem:
                asked.passed_over.append(f"{Tier.POPULAR}: {problem}")
        if not items and not filling:
            return None
        basis = self._basis(found, asked, filled=len(filling), trending=trending)
        answer = Answer((*items, *filling), (*scores, *(0.0,) * len(filling)), found.tier, basis)
        if not asked.query.explain:
            return answer
        scorer = self.scorers.get(found.tier, self.popular)
        return dataclasses.replace(
            answer,
            explanations=(*(found.scored.explanations or ()), *_why_filled(filling, trending)),
            main_parameters=(
                *(() if scorer is None else scorer.main_parameters),
                *(() if trending is None or not filling else (trending_parameter(trending.share),)),
            ),
        )

    def _trending(self, side: Side) -> TrendingSnapshot | None:
        """What is trending among visitors; they say nothing about what goes into letters or calls."""
        if self.trending is None or side is not Side.ONLINE:
            return None
        try:
            snapshot = self.trending.current()
        except Exception as error:  # noqa: BLE001 - without it, what is popular fills up as ever
            _log.warning("what is trending cannot be read: %s", type(error).__name__)
            return None
        return snapshot if snapshot.items else None

    def _fill(
        self, found: _Found, asked: _Asked, trending: TrendingSnapshot | None
    ) -> tuple[Sequence[str], str]:
        """The rest of a list from the popular one; and what is wrong with that one, if so."""
        if self.popular is None:
            return (), self.problems.get(Tier.POPULAR, "there is no list")
        items = found.scored.items
        missing = dataclasses.replace(asked.query, n=asked.query.n - len(items))
        try:
            if problem := asked.stopped(self.popular.digest):
                return (), problem
            filling = self.popular.top(
                missing,
                without=frozenset(items) | found.scored.not_again,
                mixture=found.scored.mixture,
                trending=trending,
            )
        except FilterError:  # the caller's fault
            raise
        except Exception as error:  # noqa: BLE001 - a model's fault shortens the list and is reported
            return (), _fault(Tier.POPULAR, error)
        return filling, "" if items or filling else NOTHING_TO_FILL

    def _nothing(self, asked: _Asked) -> Answer:
        return Answer((), (), Tier.NONE, self._basis(_Found(Tier.NONE), asked))

    def _basis(
        self, found: _Found, asked: _Asked, *, filled: int = 0, trending: TrendingSnapshot | None = None
    ) -> Basis:
        request, resolution, route = asked.request, asked.resolution, asked.route
        scorer = self.scorers.get(found.tier)
        # Of a tier that has a model, the problem is that a newer bundle is not used.
        kept = (
            [f"{found.tier}: {self.problems[found.tier]}"] if found.tier in self.problems and scorer else []
        )
        return Basis(
            reason=answer_reason(route, found.tier),
            reasons=(*resolution.reasons, *route.reasons, *asked.passed_over, *kept),
            state=route.state,
            side=route.side,
            policy_version=self.policy.version,
            bundle_digest=None if scorer is None else scorer.digest,
            fill_digest=self.popular.digest if filled and self.popular is not None else None,
            sources=_names(found.view.sources),
            input_digests=dict(found.digests),
            ledger_position=resolution.ledger_position,
            lifetimes_version=resolution.lifetimes_version,
            contact=None if resolution.contact is None else tuple(sorted(resolution.contact)),
            unknown_items=found.scored.unknown_items,
            filled=filled,
            at=None if request.at is None or request.at < asked.instant else request.at.isoformat(),
            trending_digest=trending.digest if filled and trending is not None else None,
        )

    def input_digests(self, view: PermittedView, state: State) -> dict[str, str]:
        """Keyed digests of what was read. Without online permission a session leaves none."""
        inputs: dict[str, str] = {}
        if Source.SESSION in view.sources and state in _ONLINE_STATES:
            inputs["session"] = _json_of(view.session)
        if Source.ONLINE in view.sources:
            inputs["online"] = _json_of(view.online_history)
        if Source.CRM in view.sources:
            inputs["crm"] = _json_of(view.crm_history)
            inputs["attributes"] = _JSON.encode(dict(view.attributes))
        return {name: self._digest(name, value) for name, value in inputs.items()}

    def _digest(self, name: str, value: str) -> str:
        text = input_text(name, value)
        if self.keyring is not None:
            return self.keyring.digest(f"input:{name}", text)
        return hmac.digest(self.audit_key, text.encode("ascii"), "sha256").hex()


def _guarded(
    ledger: ConsentLedger | None, deadline: float, known: GuardedLedger | None
) -> GuardedLedger | None:
    """The ledger as requests ask it; what is known of it already stays known."""
    if ledger is None:
        return None
    if known is None or known.ledger is not ledger:
        return GuardedLedger(ledger, deadline)
    return known if known.deadline == deadline else known.within(deadline)


def policy_of(policy: Policy | str | Path | None) -> Policy:
    """A policy, or the one of a file, or the default one."""
    if isinstance(policy, Policy):
        return policy
    return Policy.default() if policy is None else Policy.load(policy)


_WHAT = {
    Tier.SESSION: "answered from the running session",
    Tier.ONLINE: "answered from online data",
    Tier.CRM: "answered from CRM data",
    Tier.FUSED: "answered from online and CRM data together",
    Tier.POPULAR: "answered with what is popular",
    Tier.NONE: "not answered",
}


def _why_filled(filling: Sequence[str], trending: TrendingSnapshot | None) -> Iterator[Explanation]:
    hot = frozenset() if trending is None else frozenset(trending.items)
    return (TRENDING if item in hot else FILLED for item in filling)


@functools.cache
def _names(sources: frozenset[Source]) -> tuple[str, ...]:
    return tuple(sorted(str(source) for source in sources))


def answer_reason(route: Route, tier: Tier) -> str:
    """Why a tier answered, in one sentence."""
    return f"{'; '.join(route.reasons)}: {_WHAT[tier]}"


def _query(request: Request, side: Side, instant: dt.datetime) -> Query:
    return Query(
        n=request.n,
        side=side,
        where=cast("Expression | None", request.where),  # the request has read it when it was made
        explain=request.explain,
        at=microseconds(instant),
        exclude=_excluded(request, side),
        allow=None if request.allow is None else frozenset(request.allow),
    )


def _excluded(request: Request, side: Side) -> frozenset[str]:
    """What the request excludes, and on a product page its item: part of the question, whoever answers it."""
    excluded = frozenset(request.exclude)
    if request.placement != "product" or side is not Side.ONLINE:
        return excluded
    *_, last = (None, *request.session)
    return excluded | {last.item_id} if isinstance(last, Event) else excluded


def _fault(tier: Tier, error: Exception) -> str:
    """A fault in words that quote no data: an exception's message may hold some."""
    _log.warning("the %s tier failed: %s", tier, type(error).__name__)
    return f"failed with {type(error).__name__}"


def input_text(name: str, encoded: str) -> str:
    """What is digested, in the domain ``input:`` and its name, of what was read; `encoded` is its JSON."""
    return f'["{name}",{encoded}]'


def _json_of(events: Iterable[Event]) -> str:
    """Events as compact JSON: what a general encoder gives, in half of the time."""
    return f"[{','.join(map(_event_json, events))}]"


def _event_json(event: Event) -> str:
    item = encode_basestring_ascii(event.item_id)
    if event.ts is None and event.event_type is None and event.quantity is None:
        return f"[{item},null,null,null]"
    moment = "null" if event.ts is None else str(microseconds(event.ts))
    event_type = "null" if event.event_type is None else encode_basestring_ascii(event.event_type)
    quantity = "null" if event.quantity is None else _JSON.encode(event.quantity)
    return f"[{item},{moment},{event_type},{quantity}]"
