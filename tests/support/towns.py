"""Many random ledgers side by side in one, for what answers about all subjects at once.

A query to a table engine costs the same for one ledger and for ten. Nobody in one house of a town has
anything to do with anybody in another, so that each may be judged by itself as well.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

from consent_cases import LAST_TICK, Case, at_tick, cases
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Ledger, Link

__all__ = ["Town", "town_of", "towns"]


@dataclasses.dataclass(frozen=True)
class Town:
    """Ledgers side by side, asked at one instant. Subjects and record ids carry the number of the house."""

    houses: tuple[Case, ...]

    @property
    def at(self) -> dt.datetime:
        """When it is asked."""
        return self.houses[0].at

    @property
    def records(self) -> list[ConsentRecord]:
        """All records."""
        return [record for house in self.houses for record in house.records]

    @property
    def links(self) -> list[Link]:
        """All links."""
        return [link for house in self.houses for link in house.links]

    def ledger(self) -> Ledger:
        """One ledger of all."""
        return Ledger(self.records, self.links)


def town_of(*houses: Case) -> Town:
    """A town of these, all asked at the instant of the first, by all that is known by now."""
    return Town(tuple(_numbered(house, number, houses[0].at) for number, house in enumerate(houses)))


def towns(most: int = 8) -> st.SearchStrategy[Town]:
    """Towns of some houses; an early instant makes records that start later likely."""
    instants = st.integers(0, LAST_TICK).map(at_tick)
    houses = st.lists(cases(), min_size=1, max_size=most)
    return st.builds(
        lambda at, drawn: town_of(*(dataclasses.replace(house, at=at) for house in drawn)), instants, houses
    )


def _numbered(house: Case, number: int, at: dt.datetime) -> Case:
    def own(name: str) -> str:
        return f"{number}/{name}"

    return Case(
        records=tuple(
            dataclasses.replace(record, record_id=own(record.record_id), subject_id=own(record.subject_id))
            for record in house.records
        ),
        links=tuple(
            dataclasses.replace(link, visitor_id=own(link.visitor_id), customer_id=own(link.customer_id))
            for link in house.links
        ),
        at=at,
    )
