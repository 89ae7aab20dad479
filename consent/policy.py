"""The routing matrix: which tiers may answer, and what each may read, in each state of permission."""

from __future__ import annotations

import dataclasses
import enum
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consentier.consent.permissions import Channel, Side, Source, Tier
from consentier.consent.resolution import Resolution
from consentier.consent.toml_files import read_toml, require_known_keys
from consentier.errors import PolicyError, suggestion

__all__ = ["Policy", "Route", "State", "Switches", "sources_of"]


class State(enum.StrEnum):
    """A row of the matrix."""

    NONE = "none"
    ONLINE = "online"
    CRM = "crm"
    BOTH_LINKED = "both_linked"
    BOTH_UNLINKED = "both_unlinked"
    OBJECTED = "objected"


@dataclasses.dataclass(frozen=True, slots=True)
class Switches:
    """The named settings of a policy; see ``default_policy.toml`` for the meaning of each."""

    crm_on_site: bool = False
    shared_device_login: bool = True
    ads_purpose: bool = False
    fusion_purpose: bool = False
    model_purpose: bool = False
    include_single_source_in_fused: bool = False
    anonymous_statistics: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """The policy's answer for one request: the tiers that may answer, best first, and why."""

    state: State
    side: Side
    tiers: tuple[Tier, ...]
    reasons: tuple[str, ...]


_SOURCES = {
    Tier.SESSION: frozenset({Source.SESSION}),
    Tier.ONLINE: frozenset({Source.SESSION, Source.ONLINE}),
    Tier.CRM: frozenset({Source.CRM}),
    Tier.FUSED: frozenset({Source.SESSION, Source.ONLINE, Source.CRM}),
    Tier.POPULAR: frozenset[Source](),
    Tier.NONE: frozenset[Source](),
}

# The most that a cell may name. What `crm_on_site` allows beyond it, `Policy.tiers` adds.
_LAWFUL: dict[tuple[State, Side], frozenset[Tier]] = {
    (State.NONE, Side.ONLINE): frozenset({Tier.SESSION, Tier.POPULAR}),
    (State.NONE, Side.CRM): frozenset({Tier.POPULAR}),
    (State.ONLINE, Side.ONLINE): frozenset({Tier.ONLINE, Tier.SESSION, Tier.POPULAR}),
    (State.ONLINE, Side.CRM): frozenset({Tier.POPULAR}),
    (State.CRM, Side.ONLINE): frozenset({Tier.SESSION, Tier.POPULAR}),
    (State.CRM, Side.CRM): frozenset({Tier.CRM, Tier.POPULAR}),
    (State.BOTH_LINKED, Side.ONLINE): frozenset(
        {Tier.FUSED, Tier.ONLINE, Tier.CRM, Tier.SESSION, Tier.POPULAR}
    ),
    (State.BOTH_LINKED, Side.CRM): frozenset({Tier.FUSED, Tier.CRM, Tier.POPULAR}),
    (State.BOTH_UNLINKED, Side.ONLINE): frozenset({Tier.ONLINE, Tier.SESSION, Tier.POPULAR}),
    (State.BOTH_UNLINKED, Side.CRM): frozenset({Tier.CRM, Tier.POPULAR}),
    (State.OBJECTED, Side.ONLINE): frozenset({Tier.SESSION, Tier.POPULAR}),
    (State.OBJECTED, Side.CRM): frozenset(),
}

# Pairs of states of which the second holds all permissions of the first, and more.
_WIDENING = (
    (State.OBJECTED, State.NONE),
    (State.NONE, State.ONLINE),
    (State.NONE, State.CRM),
    (State.ONLINE, State.BOTH_UNLINKED),
    (State.CRM, State.BOTH_UNLINKED),
    (State.BOTH_UNLINKED, State.BOTH_LINKED),
)


def sources_of(tier: Tier, side: Side) -> frozenset[Source]:
    """What a tier may read about the person, on one side.

    There is no running session on the CRM side: an e-mail is not a visit.
    """
    sources = _SOURCES[tier]
    return sources if side is Side.ONLINE else sources - {Source.SESSION}


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """A routing matrix with its switches, checked when it is made.

    Raises
    ------
    PolicyError
        If a cell is missing, or names a tier whose permission the state does not hold.
    """

    version: str
    matrix: Mapping[tuple[State, Side], tuple[Tier, ...]]
    switches: Switches = dataclasses.field(default_factory=Switches)

    def __post_init__(self) -> None:
        if not self.version:
            raise PolicyError("the policy's version must be a non-empty string: answers name it")
        for cell, lawful in _LAWFUL.items():
            name = f"matrix.{cell[0]}.{cell[1]}"
            if cell not in self.matrix:
                raise PolicyError(
                    f"{name} is missing: every state needs both sides, an empty list for no answer"
                )
            tiers = self.matrix[cell]
            if len(set(tiers)) != len(tiers):
                raise PolicyError(f"{name} names a tier twice")
            for tier in tiers:
                if tier not in lawful:
                    raise PolicyError(
                        f"{name} names {tier.value!r}, but in that state only "
                        f"{', '.join(sorted(lawful)) or 'no tier'} may answer there"
                    )
        for side in Side:
            for less, more in _WIDENING:
                if widened := self.readable(less, side) - self.readable(more, side):
                    raise PolicyError(
                        f"matrix.{less}.{side} reads {', '.join(sorted(widened))}, matrix.{more}.{side} "
                        "does not: taking a permission away would widen what is read"
                    )

    @classmethod
    def default(cls) -> Policy:
        """The matrix that Consentier ships: every switch at its strict setting."""
        # Not importlib.resources, whose import alone takes longer than all of this package's.
        text = Path(__file__).with_name("default_policy.toml").read_text("utf-8")
        return cls.from_mapping(tomllib.loads(text), origin="the default policy")

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a shop's own policy. What it leaves out of ``[switches]`` keeps the strict default.

        Raises
        ------
        PolicyError
            If the file is missing, is no TOML, has unknown keys, or grants what a state does not permit.
        """
        document = read_toml(path, f"policy {path}", PolicyError)
        return cls.from_mapping(document, origin=f"policy {path}")

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any], *, origin: str = "policy") -> Policy:
        """Build a policy from what a TOML file holds."""
        require_known_keys(document, ("version", "switches", "matrix"), origin, PolicyError)
        switches = _table(document, "switches", origin, required=False)
        require_known_keys(
            switches,
            [field.name for field in dataclasses.fields(Switches)],
            f"{origin}: switches",
            PolicyError,
        )
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise PolicyError(f"{origin}: switches.{name} must be true or false, not {value!r}")
        matrix = _table(document, "matrix", origin, required=True)
        require_known_keys(matrix, [state.value for state in State], f"{origin}: matrix", PolicyError)
        cells = {}
        for name in matrix:
            row = _table(matrix, name, f"{origin}: matrix", required=True)
            require_known_keys(row, [side.value for side in Side], f"{origin}: matrix.{name}", PolicyError)
            for side, tiers in row.items():
                cells[State(name), Side(side)] = _tiers(tiers, f"{origin}: matrix.{name}.{side}")
        version = document.get("version", "")
        if not isinstance(version, str):
            raise PolicyError(f"{origin}: version must be a string, not {version!r}")
        try:
            return cls(version, cells, Switches(**switches))
        except PolicyError as error:
            raise PolicyError(f"{origin}: {error}") from error

    def route(self, resolution: Resolution, channel: Channel, *, vouched: bool = False) -> Route:
        """Choose the tiers for one request.

        Parameters
        ----------
        resolution
            What the ledger, or the caller, says about the person.
        channel
            Where the answer goes.
        vouched
            Whether the shop vouches, for this very session, that visitor and customer are one.
        """
        state, reasons = self._state(resolution, channel, vouched=vouched)
        return Route(state, channel.side, self.tiers(state, channel.side), reasons)

    def tiers(self, state: State, side: Side) -> tuple[Tier, ...]:
        """The tiers that may answer in a cell, best first: the matrix, and what the switches add to it."""
        tiers = self.matrix[state, side]
        if not self.switches.crm_on_site or side is Side.CRM or Tier.CRM in tiers:
            return tiers
        if state is State.CRM:
            return (Tier.CRM, *tiers)
        if state is State.BOTH_UNLINKED:
            return (*tiers[:1], Tier.CRM, *tiers[1:])
        return tiers

    def without_fused(self, first: Tier | None = None) -> Policy:
        """The policy under which linked customers are answered from one source at a time.

        In the place of fused stand the tiers of a single source that may answer there, `first` before the
        other. They read no more than fused did, each through its own view. The version says so, because
        answers name it.

        Parameters
        ----------
        first
            Online or CRM. None: neither is known to be better; they stand in this order.

        Raises
        ------
        ValueError
            If `first` is neither.
        """
        single = (Tier.ONLINE, Tier.CRM)
        if first is not None and first not in single:
            raise ValueError(f"level 3 can be answered by online or crm alone, not by {first.value!r}")
        if first is Tier.CRM:
            single = (Tier.CRM, Tier.ONLINE)
        matrix = {cell: _replaced(tiers, Tier.FUSED, single, cell) for cell, tiers in self.matrix.items()}
        how = "without fused" if first is None else f"by {first.value}"
        return dataclasses.replace(self, version=f"{self.version}; level 3 {how}", matrix=matrix)

    def readable(self, state: State, side: Side) -> frozenset[Source]:
        """All that an answer in a cell may rest on, whichever of its tiers gives it."""
        return frozenset[Source]().union(*(sources_of(tier, side) for tier in self.tiers(state, side)))

    def _state(
        self, resolution: Resolution, channel: Channel, *, vouched: bool
    ) -> tuple[State, tuple[str, ...]]:
        if resolution.objected:
            return State.OBJECTED, ("an objection stands",)
        if resolution.minor:
            return State.OBJECTED, ("a minor without parental consent",)
        if channel is Channel.ADS and not self._covered("ads", resolution):
            return State.NONE, ("advertising is not permitted",)
        if resolution.online and resolution.crm:
            return self._joined(resolution, channel, vouched=vouched)
        if resolution.online:
            return State.ONLINE, ("online permission only",)
        if resolution.crm:
            return State.CRM, ("CRM permission only",)
        return State.NONE, ("no permission",)

    def _joined(
        self, resolution: Resolution, channel: Channel, *, vouched: bool
    ) -> tuple[State, tuple[str, ...]]:
        if not resolution.linked:
            return State.BOTH_UNLINKED, ("both permissions, but no lawful link",)
        if channel.side is Side.ONLINE and self.switches.shared_device_login and not vouched:
            return State.BOTH_UNLINKED, ("both permissions, but no login in this session",)
        if not self._covered("fusion", resolution):
            return State.BOTH_UNLINKED, ("both permissions, but joining them is not permitted",)
        return State.BOTH_LINKED, ("both permissions and a lawful link",)

    def _covered(self, purpose: str, resolution: Resolution) -> bool:
        if purpose in resolution.denied_purposes:
            return False
        required: bool = getattr(self.switches, f"{purpose}_purpose")
        return not required or purpose in resolution.granted_purposes


def _replaced(
    tiers: Sequence[Tier], old: Tier, new: Sequence[Tier], cell: tuple[State, Side]
) -> tuple[Tier, ...]:
    """The tiers of a cell with others in the place of one, as far as they are lawful there; each once."""
    lawful = [tier for tier in new if tier in _LAWFUL[cell]]
    found = [each for tier in tiers for each in (lawful if tier is old else (tier,))]
    return tuple(dict.fromkeys(found))


def _table(document: Mapping[str, Any], key: str, origin: str, *, required: bool) -> Mapping[str, Any]:
    if key not in document:
        if required:
            raise PolicyError(f"{origin}: the table [{key}] is missing")
        return {}
    value = document[key]
    if not isinstance(value, Mapping):
        raise PolicyError(f"{origin}: {key} must be a table, not {value!r}")
    return value


def _tiers(value: object, where: str) -> tuple[Tier, ...]:
    if not isinstance(value, list):
        raise PolicyError(f"{where} must be a list of tiers, not {value!r}")
    names = [tier.value for tier in Tier if tier is not Tier.NONE]
    for name in value:
        if name not in names:
            raise PolicyError(f"{where}: there is no tier {name!r}{suggestion(str(name), names)}")
    return tuple(Tier(name) for name in value)
