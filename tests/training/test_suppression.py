"""Small counts stay out, and nobody who knows the rule can work them out from what is published."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given
from hypothesis import strategies as st

from consentier.training.suppression import PublishedShare, published_counts, published_share

Counts = tuple[int, ...]
cases = st.tuples(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(1, 60))


def check_nothing_small_is_published(case: tuple[list[int], int]) -> None:
    """No small count, and no small difference between the total and what stands beside it."""
    counts, threshold = case
    total, parts = published_counts(counts, threshold)
    assert all(part is None or part >= threshold for part in parts)
    assert all(part is None or part == count for part, count in zip(parts, counts, strict=True))
    if total is None:
        assert parts == [None] * len(counts)
        return
    assert total == sum(counts) >= threshold
    hidden = parts.count(None)
    if hidden:
        rest = total - sum(part for part in parts if part is not None)
        assert hidden > 1
        assert rest >= 3 * threshold or hidden == len(counts)


@given(cases)
def test_nothing_small_is_published(case: tuple[list[int], int]) -> None:
    check_nothing_small_is_published(case)


@breaks(
    Break(
        "one part alone is withheld",
        published_counts,
        "(len(out) < 2 or sum(counts[number] for number in out) < 3 * threshold)",
        "False",
        ([3, 200, 100], 10),
    ),
    Break(
        "zero is published",
        published_counts,
        "if count < threshold}",
        "if 0 < count < threshold}",
        ([0, 90], 9),
    ),
    Break("a small total is published", published_counts, "if total < threshold:", "if False:", ([1, 2], 9)),
)
def test_publishing_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_nothing_small_is_published, cases, broken)


@pytest.mark.parametrize("threshold", [2, 3, 4])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_who_knows_the_rule_cannot_undo_it(threshold: int, parts: int) -> None:
    """All tables of a size: whatever is published, each withheld count could be another one."""
    limit = 4 * threshold + 3
    behind: dict[tuple[int | None, tuple[int | None, ...]], list[Counts]] = defaultdict(list)
    for counts in itertools.product(range(limit + 1), repeat=parts):
        if sum(counts) <= limit:
            total, published = published_counts(counts, threshold)
            behind[total, tuple(published)].append(counts)
    hidden = 0
    for (total, published), tables in behind.items():
        for place, part in enumerate(published):
            if total is not None and part is None:
                hidden += 1
                assert len({counts[place] for counts in tables}) > 1, (published, tables)
    assert hidden > 5


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (40, 100, PublishedShare(0.4, "exactly")),
        (9, 100, PublishedShare(0.1, "below")),
        (0, 100, PublishedShare(0.1, "below")),
        (91, 100, PublishedShare(0.9, "above")),
        (100, 100, PublishedShare(0.9, "above")),
        (10, 19, PublishedShare(None, "nothing")),
        (10, None, PublishedShare(None, "nothing")),
    ],
)
def test_a_share_counts_nobody_out(part: int, whole: int | None, expected: PublishedShare) -> None:
    assert published_share(part, whole, 10) == expected


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="threshold"):
        published_counts([1], 0)
    with pytest.raises(ValueError, match="negative"):
        published_counts([-1], 3)
