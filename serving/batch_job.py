"""What a batch is: all that its rows depend on, written down so that an interrupted one can go on."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from consentier.consent import Channel, microseconds
from consentier.errors import DataError
from consentier.serving.batch_file import BatchFacts

__all__ = ["BatchJob", "PartCounts"]

_FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class BatchJob:
    """One batch. Two of them that are equal write the same bytes.

    Attributes
    ----------
    facts
        Channel, policy and instant.
    n
        Items per person, at most.
    persons
        How many there are, of whom each is looked at.
    persons_per_part
        How many of them a part has; the last one may have fewer.
    ledger_position
        Permissions are those that the ledger held there; None: those of the shop's own tables.
    bundles
        Digests by tier, of those that may answer.
    inputs
        A digest of persons, permissions, histories, and of what the shop shows.
    """

    facts: BatchFacts
    n: int
    persons: int
    persons_per_part: int
    ledger_position: int | None
    bundles: Mapping[str, str]
    inputs: str

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.persons // self.persons_per_part)

    @property
    def at(self) -> dt.datetime:
        """The instant."""
        return self.facts.at

    @property
    def name(self) -> str:
        """A digest of all this."""
        return hashlib.blake2b(self.to_text().encode(), digest_size=16).hexdigest()

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(self._plain(), indent=2, sort_keys=True) + "\n"

    def _plain(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["facts"]
        return {
            "format": _FORMAT,
            "channel": str(self.facts.channel),
            "policy_version": self.facts.policy_version,
            "at": self.facts.at.isoformat(),
            **values,
        }

    @classmethod
    def from_text(cls, text: str, where: str) -> BatchJob:
        """Read what `to_text` wrote.

        Raises
        ------
        DataError
            If it is something else.
        """
        try:
            values = json.loads(text)
            found = values.pop("format")
            if found != _FORMAT:
                raise DataError(f"{where}: has format {found!r}; this release reads {_FORMAT}: score again")
            at = dt.datetime.fromisoformat(values.pop("at"))
            microseconds(at)
            channel, policy_version = Channel(values.pop("channel")), values.pop("policy_version")
            job = cls(facts=BatchFacts(channel, policy_version, at.astimezone(dt.UTC)), **values)
            whole = all(isinstance(getattr(job, name), int) for name in _WHOLE)
            whole = whole and isinstance(job.ledger_position, int | None)
            if not whole or job.persons_per_part < 1 or not isinstance(policy_version, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{where}: is not what 'consentier score' wrote ({type(error).__name__}); score again"
            ) from error
        return job

    def require_same(self, begun: BatchJob, where: str) -> None:
        """Refuse to go on with another job.

        Raises
        ------
        DataError
            With the names of all that differs.
        """
        own, other = self._plain(), begun._plain()
        differing = [name for name in own if own[name] != other[name]]
        if differing:
            told = "; ".join(_told(name, other[name], own[name]) for name in differing)
            raise DataError(
                f"{where}: holds another batch than the one to be resumed: {told}. Give what the batch began "
                "with, or score into another place"
            )


_WHOLE = ("n", "persons", "persons_per_part")


def _told(name: str, before: Any, now: Any) -> str:
    if name == "inputs":
        engines = {str(value).startswith("spark ") for value in (before, now)}
        if len(engines) > 1:
            return "it was begun on the other engine"
        return "permissions, histories or the items on show have changed"
    return f"{name} was {before}, and is {now}"


@dataclasses.dataclass(frozen=True, slots=True)
class PartCounts:
    """What became of the persons of a part.

    Attributes
    ----------
    persons
        How many there are.
    rows
        Rows that were written.
    by_tier
        How many each tier answered.
    skipped
        How many have no rows, by reason.
    """

    persons: int
    rows: int
    by_tier: dict[str, int]
    skipped: dict[str, int]

    @classmethod
    def total(cls, parts: Iterable[PartCounts]) -> PartCounts:
        """All together."""
        by_tier, skipped = Counter[str](), Counter[str]()
        persons = rows = 0
        for part in parts:
            persons, rows = persons + part.persons, rows + part.rows
            by_tier.update(part.by_tier)
            skipped.update(part.skipped)
        return cls(persons, rows, dict(sorted(by_tier.items())), dict(sorted(skipped.items())))

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str, where: str) -> PartCounts:
        """Read what `to_text` wrote.

        Raises
        ------
        DataError
            If it is something else.
        """
        try:
            values = json.loads(text)
            return cls(
                int(values["persons"]), int(values["rows"]), dict(values["by_tier"]), dict(values["skipped"])
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"{where}: is no part that 'consentier score' wrote; score again") from error
