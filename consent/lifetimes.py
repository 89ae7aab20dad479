"""How old a grant may grow: by the system that collected it, the jurisdiction and the permission."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from consentier.consent.records import PERMISSIONS
from consentier.consent.toml_files import read_toml, require_known_keys
from consentier.errors import ConfigError, suggestion

__all__ = ["DAY", "UNLIMITED", "Lifetime", "Lifetimes"]

DAY = 24 * 60 * 60 * 1_000_000
"""Microseconds in a day."""

UNLIMITED = "unlimited"
"""What a file says where grants do not expire by age."""

_LONGEST_DAYS = 36_500
_KEYS = ("permissions", "collected_by", "jurisdictions", "days", "source")


@dataclasses.dataclass(frozen=True, slots=True)
class Lifetime:
    """One rule.

    Attributes
    ----------
    permissions
        The permissions that it is about.
    days
        After how many days a grant expires; None: not by its age.
    source
        The text that the number rests on.
    collected_by, jurisdictions
        The systems and jurisdictions that it is about; None: all, and grants that name none too.
        Jurisdictions are compared without regard to case.
    """

    permissions: frozenset[str]
    days: int | None
    source: str
    collected_by: frozenset[str] | None = None
    jurisdictions: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.jurisdictions is not None:
            object.__setattr__(self, "jurisdictions", frozenset(map(str.upper, self.jurisdictions)))

    def fits(self, permission: str, collected_by: str | None, jurisdiction: str | None) -> bool:
        """Whether the rule is about such a grant."""
        return (
            permission in self.permissions
            and (self.collected_by is None or collected_by in self.collected_by)
            and (
                self.jurisdictions is None
                or (jurisdiction is not None and jurisdiction.upper() in self.jurisdictions)
            )
        )


@dataclasses.dataclass(frozen=True)
class Lifetimes:
    """An ordered list of rules: the first that fits a grant governs it.

    Parameters
    ----------
    version
        Its name, told in every resolution that rests on it.
    rules
        For every permission there is one that fits all systems and jurisdictions.

    Raises
    ------
    ConfigError
        If a permission has no such rule, or a rule never applies.
    """

    version: str
    rules: tuple[Lifetime, ...]

    def __post_init__(self) -> None:
        settled: set[str] = set()
        for number, rule in enumerate(self.rules, start=1):
            if rule.permissions <= settled:
                raise ConfigError(
                    f"lifetime {number} never applies: the rules before it settle "
                    f"{', '.join(sorted(rule.permissions))} already; put it before them"
                )
            if rule.collected_by is None and rule.jurisdictions is None:
                settled |= rule.permissions
        if left := PERMISSIONS - settled:
            raise ConfigError(
                f"no lifetime is given for {', '.join(sorted(left))}: add one without collected_by and "
                f"jurisdictions, with days = {UNLIMITED!r} if such grants are not to expire by age"
            )

    @classmethod
    def default(cls) -> Lifetimes:
        """The rules that Consentier ships, each with its source."""
        return _default()

    @classmethod
    def load(cls, path: str | Path) -> Lifetimes:
        """Read a shop's own rules; see ``default_lifetimes.toml`` for their form.

        Raises
        ------
        ConfigError
            If the file is missing, is no TOML, has unknown keys, or leaves a permission out.
        """
        document = read_toml(path, f"lifetimes {path}", ConfigError)
        return cls.from_mapping(document, origin=f"lifetimes {path}")

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any], *, origin: str = "lifetimes") -> Lifetimes:
        """Build the rules from what a TOML file holds."""
        require_known_keys(document, ("version", "lifetime"), origin, ConfigError)
        version = document.get("version")
        if not isinstance(version, str) or not version:
            raise ConfigError(f"{origin}: version must be a non-empty string, not {version!r}")
        rules = document.get("lifetime", [])
        if not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
            raise ConfigError(f"{origin}: lifetime must be a list of tables, each headed [[lifetime]]")
        read = [_rule(rule, f"{origin}: lifetime {number}") for number, rule in enumerate(rules, start=1)]
        try:
            return cls(version, tuple(read))
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from error

    def max_age(self, permission: str, *, collected_by: str | None, jurisdiction: str | None) -> int | None:
        """After how many microseconds a grant expires; None: not by its age."""
        return self._max_age(permission, collected_by, jurisdiction)

    def end_of(
        self,
        permission: str,
        *,
        collected_by: str | None,
        jurisdiction: str | None,
        valid_from: int,
        valid_to: int | None,
    ) -> int | None:
        """When a grant ends: at the end that it names, or when it has grown too old if that is earlier.

        Times in microseconds since the Unix epoch; None: it does not end.
        """
        age = self._max_age(permission, collected_by, jurisdiction)
        if age is None:
            return valid_to
        return valid_from + age if valid_to is None else min(valid_to, valid_from + age)

    @functools.cached_property
    def _max_age(self) -> Callable[[str, str | None, str | None], int | None]:
        # A ledger meets few kinds of grants, each many times. Names come from outside, so there is a bound.
        return functools.lru_cache(maxsize=4096)(self._first_fitting)

    def _first_fitting(
        self, permission: str, collected_by: str | None, jurisdiction: str | None
    ) -> int | None:
        for rule in self.rules:
            if rule.fits(permission, collected_by, jurisdiction):
                return None if rule.days is None else rule.days * DAY
        return 0  # a permission that there is not: what is granted of it expires at once


@functools.cache
def _default() -> Lifetimes:
    text = Path(__file__).with_name("default_lifetimes.toml").read_text("utf-8")
    return Lifetimes.from_mapping(tomllib.loads(text), origin="the default lifetimes")


def _rule(document: Mapping[str, Any], where: str) -> Lifetime:
    require_known_keys(document, _KEYS, where, ConfigError)
    for key in ("permissions", "days", "source"):
        if key not in document:
            raise ConfigError(f"{where}: {key} is missing")
    permissions = _names(document, "permissions", where)
    for name in permissions:
        if name not in PERMISSIONS:
            raise ConfigError(
                f"{where}: there is no permission {name!r}{suggestion(name, sorted(PERMISSIONS))}"
            )
    days, source = document["days"], document["source"]
    if days != UNLIMITED and not (type(days) is int and 0 < days <= _LONGEST_DAYS):
        raise ConfigError(
            f"{where}: days must be a whole number from 1 to {_LONGEST_DAYS}, or {UNLIMITED!r}, not {days!r}"
        )
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(f"{where}: source must say what the number rests on")
    return Lifetime(
        permissions=permissions,
        days=None if days == UNLIMITED else days,
        source=source,
        collected_by=_names(document, "collected_by", where) if "collected_by" in document else None,
        jurisdictions=_names(document, "jurisdictions", where) if "jurisdictions" in document else None,
    )


def _names(document: Mapping[str, Any], key: str, where: str) -> frozenset[str]:
    names = document[key]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: {key} must be a list of names, not {names!r}")
    return frozenset(names)
