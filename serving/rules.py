"""A shop's business rules: what may be shown, and in which mixture. They read items, never persons.

The one rule that looks at a person, when something bought may come again, is a function of the permitted
view, so it acts only where CRM data may be read.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import microseconds
from consentier.consent.toml_files import read_toml, require_known_keys
from consentier.errors import ConfigError
from consentier.serving.item_columns import Expression, FilterError, ItemColumns, Value

__all__ = [
    "Boost",
    "Diversity",
    "Explore",
    "Mixture",
    "Ranking",
    "Rebuy",
    "Rules",
    "ShelfRules",
    "candidates_for",
]

_MICROSECONDS_PER_DAY = 86_400_000_000
_NEVER = -(2**62)

Ranking = Callable[[int], tuple[NDArray[np.int64], NDArray[np.float64]]]
"""Gives so many of the best items of one question, or all there are: numbers and scores, in their order."""

_WIDER = 8
"""How many times as many candidates are asked for where those before did not decide."""


@dataclasses.dataclass(frozen=True, slots=True)
class Boost:
    """Items for which an expression is true get their scores multiplied by a factor above 0."""

    where: Expression
    factor: float


@dataclasses.dataclass(frozen=True, slots=True)
class Rebuy:
    """When what a customer bought may be recommended to them again.

    Attributes
    ----------
    column
        The attribute of items that decides.
    days
        Days after the latest purchase, by value of the column.
    otherwise
        Days for all other items; None: never.
    """

    column: str
    days: Mapping[str, float]
    otherwise: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Diversity:
    """Maximal marginal relevance over some attributes of items.

    Attributes
    ----------
    weight
        Between 0 (by score alone) and 1.
    columns
        Two items are as similar as the share of these attributes in which they agree.
    """

    weight: float
    columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Explore:
    """A share of slots for items that are new, drawn by chance.

    Attributes
    ----------
    share
        Of the slots of each list on the online side, on average; above 0 and at most 1.
    persons
        New is what fewer persons had, by the counts of the popular list; 1: what nobody had.
    column, days
        And, where they are given, what was added at most so many days before, by an attribute of items that
        holds dates.
    """

    share: float
    persons: int = 1
    column: str | None = None
    days: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A shop's business rules.

    Attributes
    ----------
    show
        Only items for which this is known to be true are shown; None: all.
    deny
        Items that are never shown.
    boosts
        What scores are multiplied by; the factors of several that apply are multiplied.
    caps
        How many items of one value of an attribute a list may hold, by attribute. Items without a value are
        not counted.
    rebuy
        When what was bought may come again; None: as the models say (`hide`).
    diversity
        None: by score alone.
    explore
        None: nothing is drawn by chance.
    """

    show: Expression | None = None
    deny: frozenset[str] = frozenset()
    boosts: tuple[Boost, ...] = ()
    caps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rebuy: Rebuy | None = None
    diversity: Diversity | None = None
    explore: Explore | None = None

    @classmethod
    def load(cls, path: str | Path) -> Rules:
        """Read rules from a TOML file.

        Raises
        ------
        ConfigError
            The file cannot be read, or a key or value is wrong; the message names it.
        """
        return cls.from_document(read_toml(path, f"rules {path}", ConfigError), f"rules {path}")

    @classmethod
    def from_document(cls, document: Mapping[str, Any], origin: str = "rules") -> Rules:
        """Read rules from plain values, as they stand in a TOML file.

        Raises
        ------
        ConfigError
            A key or value is wrong; the message names it.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.name != "boosts"]
        require_known_keys(document, [*known, "boost"], origin, ConfigError)
        return cls(
            show=_expression(document["show"], f"{origin}: show") if "show" in document else None,
            deny=frozenset(_texts(document.get("deny", []), f"{origin}: deny")),
            boosts=tuple(_boosts(document.get("boost", []), f"{origin}: boost")),
            caps=_caps(document.get("caps", {}), f"{origin}: caps"),
            rebuy=_rebuy(document["rebuy"], f"{origin}: rebuy") if "rebuy" in document else None,
            diversity=_diversity(document["diversity"], f"{origin}: diversity")
            if "diversity" in document
            else None,
            explore=_explore(document["explore"], f"{origin}: explore") if "explore" in document else None,
        )

    def check(
        self, attributes: Mapping[str, Mapping[str, Value]], unread: frozenset[str] = frozenset()
    ) -> None:
        """Work the rules out for a catalogue's items, to see whether they fit its attributes.

        Parameters
        ----------
        attributes, unread
            As in `Catalogue`.

        Raises
        ------
        ConfigError
            A rule names an attribute that items do not have, or compares it with a value of another kind.
        """
        items = list(attributes)
        try:
            ShelfRules(self, ItemColumns(attributes, items, unread), items)
        except FilterError as error:
            raise ConfigError(f"business rules: {error}") from None

    @property
    def columns(self) -> frozenset[str]:
        """The attributes of items that the rules read."""
        expressions = [*([] if self.show is None else [self.show]), *(boost.where for boost in self.boosts)]
        return frozenset().union(
            *(expression.names for expression in expressions),
            self.caps,
            () if self.rebuy is None else (self.rebuy.column,),
            () if self.diversity is None else self.diversity.columns,
            () if self.explore is None or self.explore.column is None else (self.explore.column,),
        )

    @property
    def mixes(self) -> bool:
        """Whether a list is more than the best scores in their order."""
        return bool(self.boosts or self.caps or self.diversity)


def candidates_for(n: int) -> int:
    """From how many of the best items diversity chooses a list of n; the rest only fills what caps leave."""
    return 10 * n + 100


class Mixture:
    """How many items of each capped value one list holds so far; filled up by one tier after the other."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, Value], int] = {}


class ShelfRules:
    """A shop's rules, worked out once for the items of one bundle.

    Parameters
    ----------
    rules
        The rules.
    columns
        Attributes of the bundle's items, in its order.
    items
        Ids of these items.

    Raises
    ------
    FilterError
        A rule names an attribute that items do not have, or compares it with a value of another kind.

    Notes
    -----
    A pass over the items for each comparison; afterwards 1 byte per item, and 8 for boosts and for each
    attribute that caps, re-buying or diversity ask for.
    """

    def __init__(self, rules: Rules, columns: ItemColumns, items: Sequence[str]) -> None:
        self.rules = rules
        self.hidden = np.zeros(len(items), dtype=np.bool_)
        if rules.show is not None:
            self.hidden |= ~rules.show.true_for(columns)
        if rules.deny:
            self.hidden |= np.fromiter((item in rules.deny for item in items), np.bool_, len(items))
        self._factors = np.ones(len(items))
        for boost in rules.boosts:
            self._factors[boost.where.true_for(columns)] *= boost.factor
        self._largest_factor = float(self._factors.max(initial=0.0, where=~self.hidden))
        self._caps = [(name, limit, columns.values(name)) for name, limit in sorted(rules.caps.items())]
        self._similar = [] if rules.diversity is None else [columns.codes(n) for n in rules.diversity.columns]
        self._rebuy = None if rules.rebuy is None else columns.values(rules.rebuy.column)
        column = None if rules.explore is None else rules.explore.column
        self._added = None if column is None else _instants(column, columns.values(column))

    def recent(self, numbers: NDArray[np.int64], at: int) -> NDArray[np.int64]:
        """Those of some items that were added lately enough to be explored at an instant, in microseconds."""
        explore = self.rules.explore
        if self._added is None or explore is None or explore.days is None:
            return numbers
        added = self._added[numbers]
        return numbers[(added <= at) & (added >= at - round(explore.days * _MICROSECONDS_PER_DAY))]

    def digest_into(self, digest: Any) -> None:
        """Feed all that the rules come to for these items to a hash."""
        digest.update(self._factors)
        told = (self._caps, self.rules.rebuy, self._rebuy, self.rules.diversity)
        digest.update(repr(told).encode("utf-8", "surrogatepass"))
        for codes in self._similar:
            digest.update(codes)

    def rebuy_interval(self, number: int) -> int | None:
        """Microseconds after a purchase before an item may come again; None: never.

        Without a rule 0, for items that the bundle does not know what holds for all others.
        """
        rule = self.rules.rebuy
        if rule is None or self._rebuy is None:
            return 0
        value = self._rebuy[number] if number >= 0 else None
        days = rule.otherwise if value is None else rule.days.get(str(value), rule.otherwise)
        return None if days is None else round(days * _MICROSECONDS_PER_DAY)

    def list_of(
        self, ranking: Ranking, n: int, item_count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], Mixture]:
        """Choose a list out of as many of the best items as it takes to know it: see `chosen`.

        The first items of a ranking settle the list if nothing behind them can change it: with caps, if the
        list is full; with boosts, as far as boosted scores are above what the largest factor could make of
        the first score that was not asked for; with diversity, if all of its candidates are among them.
        Else more are asked for, at last all.

        Parameters
        ----------
        ranking
            The items that may be shown, best first: asked for more and more of them.
        n
            How many items at most.
        item_count
            No ranking has more items than this.

        Returns
        -------
        ids, scores
            As `chosen` gives them for the whole ranking, bit for bit.
        mixture
            What the list holds.
        """
        needed = candidates_for(n) if self.rules.diversity is not None else n
        asked = candidates_for(n)
        if self.rules.boosts and self.rules.diversity is not None:
            asked *= _WIDER  # boosts never settle the last one asked for, and diversity needs as many
        while True:
            ids, scores = ranking(min(asked, item_count))
            whole = ids.size < asked or asked >= item_count
            mixture = Mixture()
            ids, scores = self._boosted(ids, scores, whole=whole)
            if whole or ids.size >= needed:
                ids, scores = self._picked(ids, scores, n, mixture)
                if whole or ids.size == n:
                    return ids, scores, mixture
            asked *= _WIDER

    def chosen(
        self, ids: NDArray[np.int64], scores: NDArray[np.float64], n: int, mixture: Mixture
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Choose a list out of candidates.

        Parameters
        ----------
        ids, scores
            All candidates that may be shown: int64 and float64, shape (m,), in their order.
        n
            How many items at most.
        mixture
            What the list holds already; what is chosen is counted there.

        Returns
        -------
        ids, scores
            In the order of the list, with the scores that the model and the boosts give. With diversity they
            need not descend.

        Notes
        -----
        O(m log m) with boosts; O(n · candidates looked at) with diversity, at most 10 n + 100 candidates.
        """
        return self._picked(*self._boosted(ids, scores, whole=True), n, mixture)

    def _boosted(
        self, ids: NDArray[np.int64], scores: NDArray[np.float64], *, whole: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Boosted scores in their order; of a ranking that goes on, those that nothing behind can reach."""
        if not self.rules.boosts:
            return ids, scores
        boosted = scores * self._factors[ids]
        order = np.lexsort((ids, -boosted))
        if not whole:
            # The most that one behind can have: rounding keeps the order of products of positive numbers.
            order = order[boosted[order] > scores[-1] * self._largest_factor]
        return ids[order], boosted[order]

    def _picked(
        self, ids: NDArray[np.int64], scores: NDArray[np.float64], n: int, mixture: Mixture
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What caps and diversity choose."""
        if self.rules.diversity is None:
            kept = self._within_caps(ids.tolist(), n, mixture)
        else:
            kept = self._diverse(ids, scores, n, mixture, self.rules.diversity.weight)
        return ids[kept], scores[kept]

    def offer(self, number: int, mixture: Mixture) -> bool:
        """Whether one more item keeps to the caps; if so, it is counted."""
        values = [(name, limit, column[number]) for name, limit, column in self._caps]
        counted = [(name, value) for name, _, value in values if value is not None]
        if any(
            mixture.counts.get((name, value), 0) >= limit
            for name, limit, value in values
            if value is not None
        ):
            return False
        for key in counted:
            mixture.counts[key] = mixture.counts.get(key, 0) + 1
        return True

    def _within_caps(self, ids: Iterable[int], n: int, mixture: Mixture) -> list[int]:
        kept: list[int] = []
        for place, number in enumerate(ids):
            if len(kept) == n:
                break
            if self.offer(number, mixture):
                kept.append(place)
        return kept

    def _diverse(
        self, ids: NDArray[np.int64], scores: NDArray[np.float64], n: int, mixture: Mixture, weight: float
    ) -> list[int]:
        """Greedy maximal marginal relevance: Carbonell and Goldstein, SIGIR 1998.

        The next item is the one with the largest ``(1 - weight) · score / largest score - weight · (largest
        similarity to an item chosen before)``, equal ones in their order.
        """
        pool = min(ids.size, candidates_for(n))
        if not pool:
            return []
        relevance = (1 - weight) * scores[:pool] / scores[0]
        codes = np.array([column[ids[:pool]] for column in self._similar])
        nearest, open_ = np.zeros(pool), np.ones(pool, dtype=np.bool_)
        kept: list[int] = []
        while len(kept) < n and open_.any():
            place = int(np.argmax(np.where(open_, relevance - weight * nearest, -math.inf)))
            open_[place] = False
            if not self.offer(int(ids[place]), mixture):
                continue
            kept.append(place)
            own = codes[:, place : place + 1]
            nearest = np.maximum(nearest, ((codes == own) & (own >= 0)).mean(axis=0))
        if len(kept) < n:  # the caps took so many that others are needed
            kept += [pool + place for place in self._within_caps(ids[pool:].tolist(), n - len(kept), mixture)]
        return kept


# ---- Reading a document ------------------------------------------------------------------------------------


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, not {value!r}")
    return value


def _expression(value: object, where: str) -> Expression:
    try:
        return Expression(value)  # type: ignore[arg-type]  # it checks that itself
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _texts(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{where} must be a list of texts, not {value!r}")
    return value


def _number(value: object, where: str, *, above: float | None = None, most: float = math.inf) -> float:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or not (above is None or value > above) or not value <= most:  # type: ignore[operator]
        limits = "" if above is None else f" above {above:g}"
        limits += "" if most == math.inf else f" and at most {most:g}"
        raise ConfigError(f"{where} must be a number{limits}, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _boosts(value: object, where: str) -> Iterable[Boost]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list of tables, not {value!r}")
    for number, entry in enumerate(value, start=1):
        table = _table(entry, f"{where} {number}")
        require_known_keys(table, ("where", "factor"), f"{where} {number}", ConfigError)
        yield Boost(
            _expression(table.get("where"), f"{where} {number}: where"),
            _number(table.get("factor"), f"{where} {number}: factor", above=0),
        )


def _caps(value: object, where: str) -> dict[str, int]:
    table = _table(value, where)
    for name, limit in table.items():
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"{where}.{name} must be a whole number of at least 1, not {limit!r}")
    return dict(table)


def _rebuy(value: object, where: str) -> Rebuy:
    table = _table(value, where)
    require_known_keys(table, ("column", "days", "otherwise"), where, ConfigError)
    column = table.get("column")
    if not isinstance(column, str):
        raise ConfigError(f"{where}.column must name an attribute of items, not {column!r}")
    days = {
        name: _number(each, f"{where}.days.{name}", above=0)
        for name, each in _table(table.get("days", {}), f"{where}.days").items()
    }
    otherwise = table.get("otherwise")
    return Rebuy(
        column, days, None if otherwise is None else _number(otherwise, f"{where}.otherwise", above=0)
    )


def _explore(value: object, where: str) -> Explore:
    table = _table(value, where)
    require_known_keys(table, ("share", "persons", "column", "days"), where, ConfigError)
    persons, column, days = table.get("persons", 1), table.get("column"), table.get("days")
    if isinstance(persons, bool) or not isinstance(persons, int) or persons < 1:
        raise ConfigError(f"{where}.persons must be a whole number of at least 1, not {persons!r}")
    if (column is None) != (days is None):
        raise ConfigError(f"{where} must have both column and days, or neither")
    if column is not None and not isinstance(column, str):
        raise ConfigError(f"{where}.column must name an attribute of items, not {column!r}")
    return Explore(
        _number(table.get("share"), f"{where}.share", above=0, most=1),
        persons,
        column,
        None if days is None else _number(days, f"{where}.days", above=0),
    )


def _instants(name: str, dates: Sequence[Value]) -> NDArray[np.int64]:
    """Dates as microseconds since the Unix epoch; those that are missing lie before all others."""
    return np.array([_NEVER if date is None else _instant(name, date) for date in dates], dtype=np.int64)


def _instant(name: str, date: Value) -> int:
    try:
        moment = dt.datetime.fromisoformat(str(date))
    except ValueError:
        raise FilterError(f"{name} must hold dates, as in 2026-03-31, not {date!r}") from None
    return microseconds(moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC))


def _diversity(value: object, where: str) -> Diversity:
    table = _table(value, where)
    require_known_keys(table, ("weight", "columns"), where, ConfigError)
    columns = _texts(table.get("columns"), f"{where}.columns")
    if not columns:
        raise ConfigError(f"{where}.columns must name at least one attribute of items")
    return Diversity(_number(table.get("weight"), f"{where}.weight", above=0, most=1), tuple(columns))
