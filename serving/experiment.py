"""Experiments between versions of the bundles: who answers, without touching what is permitted.

Which arm a person is in depends on an id that the request may use, and on nothing else: the customer's where
both permissions hold and are lawfully linked or where CRM data may be used, the visitor's where online data
may be used. Where there is no such id, as at the first level, the arm is drawn for each request anew. It is
never remembered: a session without permission is not recognised, not even by its arm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from consentier.consent import Policy, Route, Side, Source, State, Tier
from consentier.consent.records import SubjectKind
from consentier.consent.toml_files import read_toml, require_known_keys
from consentier.errors import ConfigError
from consentier.serving.answer import Answer
from consentier.serving.audit import nameable
from consentier.serving.recommender import Recommender
from consentier.serving.reloading import ReloadingRecommender
from consentier.serving.request import Request

__all__ = ["BUCKETS", "Attribution", "Experiment", "ExperimentRecommender", "assignable"]

BUCKETS = 100
"""Groups of persons, by which outcomes are told to belong together without saying whose they are."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MIN_SALT = 16
_MAX_ANSWER_ID = 300
_TOLERANCE = 1e-9
_COUNTED, _NO_BUCKET = "c", "a"

_by_chance = secrets.SystemRandom().random

_ONLINE_STATES = frozenset({State.ONLINE, State.BOTH_LINKED, State.BOTH_UNLINKED})
_CRM_STATES = frozenset({State.CRM, State.BOTH_LINKED, State.BOTH_UNLINKED})


@dataclasses.dataclass(frozen=True, slots=True)
class Attribution:
    """What an answer id says.

    Attributes
    ----------
    experiment, arm, tier
        Which arm of which experiment answered, and from which tier.
    key
        The random part, by which outcomes of one answer are told to belong together; None where no permission
        covers that: outcomes are counted only.
    bucket
        Which of `BUCKETS` groups of persons it was; None where the arm was drawn, or nobody may be named.
    """

    experiment: str
    arm: str
    tier: Tier
    key: str | None
    bucket: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Experiment:
    """Arms, and the share of requests or persons that each gets.

    Parameters
    ----------
    name
        Lower-case letters, digits, ``-`` and ``_``. Another name assigns anew.
    salt
        A secret of at least 16 characters. Another salt assigns anew; whoever knows it can tell the arm of an
        id, and make up answer ids.
    arms
        Share by the name of each arm, above 0; together 1.

    Raises
    ------
    TypeError, ValueError
        If it is not so.
    """

    name: str
    salt: str = dataclasses.field(repr=False)
    arms: Mapping[str, float]

    def __post_init__(self) -> None:
        for field in ("name", "salt"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f"Experiment: {field} must be a string")
        _check_name("name", self.name)
        if len(self.salt) < _MIN_SALT:
            raise ValueError(
                f"Experiment: salt must have at least {_MIN_SALT} characters, for example "
                f"{secrets.token_hex(16)!r}"
            )
        if not isinstance(self.arms, Mapping):
            raise TypeError(f"Experiment: arms must be a mapping of names to shares, not {self.arms!r}")
        if len(self.arms) < 2:
            raise ValueError(f"Experiment: there must be at least two arms, not {len(self.arms)}")
        for arm, share in self.arms.items():
            _check_name("the name of an arm", arm)
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise TypeError(f"Experiment: the share of arm {arm!r} must be a number, not {share!r}")
            if not 0 < share < 1:
                raise ValueError(f"Experiment: the share of arm {arm!r} must be above 0 and below 1")
        if abs(math.fsum(self.arms.values()) - 1) > _TOLERANCE:
            raise ValueError(f"Experiment: the shares add up to {math.fsum(self.arms.values()):g}, not to 1")
        object.__setattr__(self, "arms", MappingProxyType(dict(self.arms)))

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Read an experiment from TOML: ``name``, ``salt`` and a table ``[arms]`` of shares.

        Raises
        ------
        ConfigError
            If the file cannot be read, or says something else.
        """
        origin = f"experiment {path}"
        document = read_toml(path, origin, ConfigError)
        fields = [field.name for field in dataclasses.fields(cls)]
        require_known_keys(document, fields, origin, ConfigError)
        if missing := [name for name in fields if name not in document]:
            raise ConfigError(f"{origin}: {', '.join(missing)} is missing")
        try:
            return cls(**document)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{origin}: {error}") from error

    def assigned(self, kind: SubjectKind, subject_id: str) -> str:
        """The arm of a person: the same in every process, and each with the probability of its share.

        Weighted rendezvous hashing: when shares change, no more persons than must change their arm, and none
        between two arms whose shares keep their ratio.
        """
        return min(self.arms, key=lambda arm: (self._distance(arm, kind, subject_id), arm))

    def drawn(self, random: Callable[[], float]) -> str:
        """An arm by chance, from a random number of at least 0 and below 1."""
        left = random()
        *others, last = self.arms.items()
        for arm, share in others:
            if left < share:
                return arm
            left -= share
        return last[0]

    def bucket(self, kind: SubjectKind, subject_id: str) -> int:
        """Which of `BUCKETS` groups a person is in: independent of the arm."""
        return int.from_bytes(self._digest("bucket", kind, subject_id)[:8], "big") % BUCKETS

    def answer_id(self, arm: str, tier: Tier, *, named: bool, bucket: int | None) -> str:
        """A new answer id: random, and nobody else can make one up.

        Parameters
        ----------
        arm, tier
            Who answered.
        named
            Whether outcomes may be recorded by answer, or are counted only.
        bucket
            Of the person, where one is known. Not told unless `named`.
        """
        level = _COUNTED if not named else _NO_BUCKET if bucket is None else str(bucket)
        text = ".".join((self.name, arm, tier, level, secrets.token_hex(16)))
        return f"{text}.{self._seal(text)}"

    def read(self, answer_id: str | None) -> Attribution | None:
        """What an answer id says; None if it is none of this experiment's."""
        if answer_id is None or len(answer_id) > _MAX_ANSWER_ID or not answer_id.isascii():
            return None
        text, _, seal = answer_id.rpartition(".")
        if not hmac.compare_digest(seal, self._seal(text)):
            return None
        name, arm, tier, level, key = text.split(".")
        if level == _COUNTED:
            return Attribution(name, arm, Tier(tier), None, None)
        return Attribution(name, arm, Tier(tier), key, None if level == _NO_BUCKET else int(level))

    def _distance(self, arm: str, kind: SubjectKind, subject_id: str) -> float:
        """Exponentially distributed, at the rate of the arm's share: the least of them wins as often."""
        number = int.from_bytes(self._digest("arm", arm, kind, subject_id)[:8], "big")
        return -math.log((number + 0.5) / 2**64) / self.arms[arm]

    def _digest(self, *parts: str) -> bytes:
        text = json.dumps([self.name, *parts], ensure_ascii=True, separators=(",", ":"))
        return hmac.digest(self.salt.encode("utf-8", "surrogatepass"), text.encode("ascii"), hashlib.sha256)

    def _seal(self, text: str) -> str:
        return self._digest("answer", text).hex()[:16]


class ExperimentRecommender:
    """Divides requests among recommenders with different bundles.

    Its answers name experiment and arm in their basis, and have an `answer_id` for an `OutcomeLog`.

    Parameters
    ----------
    experiment
        The arms and their shares.
    arms
        By the name of each arm, what answers in it. All must have one policy and one ledger: arms differ in
        models, never in what is permitted.
    random
        Draws a number of at least 0 and below 1. For tests; by default from the system.

    Raises
    ------
    ValueError
        If `arms` are not those of the experiment, or differ in policy or ledger.

    Notes
    -----
    Costs 0.06 to 0.08 ms a request, beside 0.11 to 0.13 ms of the answer itself (small bundles, 2 loaded
    cores).
    """

    def __init__(
        self,
        experiment: Experiment,
        arms: Mapping[str, Recommender | ReloadingRecommender],
        *,
        random: Callable[[], float] = _by_chance,
    ) -> None:
        if set(arms) != set(experiment.arms):
            raise ValueError(
                f"the arms of {experiment.name!r} are {', '.join(sorted(experiment.arms))}; recommenders are "
                f"given for {', '.join(sorted(arms)) or 'none'}"
            )
        self._experiment = experiment
        self._arms = dict(arms)
        self._random = random
        first, *others = (_current(arm) for arm in self._arms.values())
        for other in others:
            if other.policy != first.policy or other.ledger is not first.ledger:
                raise ValueError(
                    "all arms must have one policy and one ledger: an experiment compares models, and must "
                    "not change what is permitted"
                )
        self._first = next(iter(self._arms.values()))

    def recommend(self, request: Request) -> Answer:
        """As `Recommender.recommend`, by the arm that the request's permitted id or chance chooses."""
        chosen: list[tuple[str, int | None]] = []

        def choose(route: Route) -> Recommender:
            arm, bucket = self._place(request, route)
            chosen.append((arm, bucket))
            return _current(self._arms[arm])

        answer = _current(self._first).recommend_through(request, choose)
        return self._told(answer, *chosen[0])

    def similar(self, item_id: str, *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """As `Recommender.similar`, by an arm that is drawn."""
        arm = self._experiment.drawn(self._random)
        return self._told(_current(self._arms[arm]).similar(item_id, n=n, exclude=exclude), arm, None)

    def basket(self, items: Iterable[str], *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """As `Recommender.basket`, by an arm that is drawn."""
        arm = self._experiment.drawn(self._random)
        return self._told(_current(self._arms[arm]).basket(items, n=n, exclude=exclude), arm, None)

    def _place(self, request: Request, route: Route) -> tuple[str, int | None]:
        """The arm; and the person's bucket, where a permitted id chose."""
        ids: dict[SubjectKind, str | None] = {
            "visitor": request.visitor_id,
            "customer": request.customer_id,
        }
        for kind in assignable(_current(self._first).policy, route):
            subject_id = ids[kind]
            if subject_id is not None:
                return self._experiment.assigned(kind, subject_id), self._experiment.bucket(kind, subject_id)
        return self._experiment.drawn(self._random), None

    def _told(self, answer: Answer, arm: str, bucket: int | None) -> Answer:
        """The answer with what it says of the experiment."""
        basis = answer.basis
        named = bool(nameable(State(basis.state), Side(basis.side), basis.sources))
        return dataclasses.replace(
            answer,
            basis=dataclasses.replace(basis, experiment=self._experiment.name, arm=arm),
            answer_id=self._experiment.answer_id(arm, answer.tier, named=named, bucket=bucket),
        )


def assignable(policy: Policy, route: Route) -> tuple[SubjectKind, ...]:
    """Whose id may choose an arm on a route, best first: whose own data some tier of it may read."""
    readable = policy.readable(route.state, route.side)
    visitor = Source.ONLINE in readable and route.state in _ONLINE_STATES
    customer = Source.CRM in readable and route.state in _CRM_STATES
    visitors: tuple[SubjectKind, ...] = ("visitor",) if visitor else ()
    customers: tuple[SubjectKind, ...] = ("customer",) if customer else ()
    # Whoever may be recognised on all devices stays in one arm on all of them.
    return customers + visitors if route.state is State.BOTH_LINKED else visitors + customers


def _current(arm: Recommender | ReloadingRecommender) -> Recommender:
    return arm.current if isinstance(arm, ReloadingRecommender) else arm


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"Experiment: {what} must be a string, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"Experiment: {what} is {name!r}; it must begin with a lower-case letter or digit, followed by "
            "at most 63 of these, - and _"
        )
