"""The report of an experiment: counts, rates and intervals that hold what they promise."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import Tier
from consentier.errors import DataError
from consentier.serving.outcomes import OutcomeKind, OutcomeLine
from consentier.training.experiment_report import ExperimentReport, Rate, Stratum, experiment_report

DAY = dt.date(2026, 3, 1)
IMPRESSION, CLICK, PURCHASE = OutcomeKind

_keys = (f"{number:032x}" for number in itertools.count())


def named(
    arm: str, *kinds: OutcomeKind, tier: Tier = Tier.ONLINE, bucket: int = -1, day: dt.date = DAY
) -> list[OutcomeLine]:
    """One answer and what became of it."""
    key = next(_keys)
    return [OutcomeLine(day, "x", arm, tier, kind, 1, key, bucket) for kind in kinds]


def counted(arm: str, kind: OutcomeKind, count: int, tier: Tier = Tier.SESSION) -> list[OutcomeLine]:
    return [OutcomeLine(DAY, "x", arm, tier, kind, count)]


def shown(arm: str, answers: int, clicks: int, **more: object) -> list[OutcomeLine]:
    """So many answers, of which so many were clicked."""
    lines: list[OutcomeLine] = []
    for number in range(answers):
        lines += named(arm, *([IMPRESSION, CLICK] if number < clicks else [IMPRESSION]), **more)  # type: ignore[arg-type]
    return lines


def stratum(report: ExperimentReport, recorded: str, tier: str = "all") -> Stratum:
    [found] = [each for each in report.strata if (each.recorded, each.tier) == (recorded, tier)]
    return found


def rounded(rate: Rate, digits: int = 4) -> tuple[float, float, float]:
    return round(rate.mean, digits), round(rate.low, digits), round(rate.high, digits)


def test_rates_and_differences_are_those_of_the_text_books() -> None:
    """56 of 70 against 48 of 80: the first example of Newcombe (1998), table II, method 10."""
    report = experiment_report([*shown("a", 80, 48), *shown("b", 70, 56)])
    found = stratum(report, "answers")
    first, second = found.arms
    assert (first.arm, first.impressions, first.clicks) == ("a", 80, 48)
    # Wilson: the shares from which the observed one is 1.96 standard deviations away.
    for bound in (second.click_rate.low, second.click_rate.high):
        assert abs(0.8 - bound) / np.sqrt(bound * (1 - bound) / 70) == pytest.approx(1.96, abs=0.001)
    [difference] = found.differences
    assert (difference.arm, difference.against) == ("b", "a")
    assert rounded(difference.click_rate) == (0.2, 0.0524, 0.3339)


def test_outcomes_that_are_counted_stand_apart_and_may_exceed_the_impressions() -> None:
    lines = [
        *shown("a", 10, 2),
        *counted("a", IMPRESSION, 60), *counted("a", IMPRESSION, 40), *counted("a", CLICK, 150),
        *counted("b", IMPRESSION, 100), *counted("b", PURCHASE, 4),
    ]  # fmt: skip
    found = stratum(experiment_report(lines), "counts")
    first, second = found.arms
    assert (first.impressions, first.clicks, first.purchases) == (100, 150, 0)
    assert first.click_rate.mean == 1.5
    # A score interval: the rates whose expectation is 1.96 standard deviations from what was counted.
    for bound in (first.click_rate.low, first.click_rate.high):
        assert abs(150 - 100 * bound) / np.sqrt(100 * bound) == pytest.approx(1.96, abs=0.001)
    assert first.conversion_rate.low == 0.0
    assert first.conversion_rate.high > 0
    assert second.conversion_rate.mean == 0.04


def test_each_tier_stands_for_itself_after_all_of_them() -> None:
    lines = [*shown("a", 5, 1), *shown("b", 5, 2), *shown("a", 7, 3, tier=Tier.FUSED)]
    report = experiment_report(lines)
    assert [(each.recorded, each.tier) for each in report.strata] == [
        ("answers", "all"),
        ("answers", "fused"),
        ("answers", "online"),
    ]
    assert [arm.impressions for arm in stratum(report, "answers").arms] == [12, 5]
    assert stratum(report, "answers", "fused").differences == ()


def test_an_outcome_that_came_twice_counts_once_and_one_without_impression_nowhere() -> None:
    twice = named("a", IMPRESSION, CLICK)
    lines = [*twice, *twice, *named("a", CLICK, PURCHASE), *named("b", IMPRESSION)]
    report = experiment_report(lines)
    assert [(arm.impressions, arm.clicks) for arm in stratum(report, "answers").arms] == [(1, 1), (1, 0)]
    assert (report.unmatched_clicks, report.unmatched_purchases) == (1, 1)


def test_control_and_experiment_are_chosen_by_name() -> None:
    lines = [*shown("a", 5, 1), *shown("b", 5, 2), *shown("c", 5, 2)]
    report = experiment_report(lines, control="b")
    assert [each.arm for each in stratum(report, "answers").differences] == ["a", "c"]
    assert report.control == "b"
    other = [dataclasses.replace(line, experiment="y") for line in shown("a", 3, 1)]
    assert stratum(experiment_report([*lines, *other], experiment="y"), "answers").arms[0].impressions == 3
    with pytest.raises(DataError, match="outcomes of x, y: name one"):
        experiment_report([*lines, *other])
    with pytest.raises(DataError, match="no outcomes of experiment 'z'"):
        experiment_report(lines, experiment="z")
    with pytest.raises(DataError, match="no outcomes of arm 'd'"):
        experiment_report(lines, control="d")
    with pytest.raises(DataError, match="there are no outcomes: is this the directory of the outcome log"):
        experiment_report([])
    with pytest.raises(DataError, match="has no impressions"):
        experiment_report(named("a", CLICK))
    with pytest.raises(ValueError, match="confidence must be"):
        experiment_report(lines, confidence=1)


def test_days_are_the_first_and_the_last() -> None:
    later = DAY + dt.timedelta(days=3)
    report = experiment_report([*named("a", IMPRESSION, day=later), *named("b", IMPRESSION)])
    assert (report.first_day, report.last_day) == (DAY, later)
    assert report.to_dict()["last_day"] == "2026-03-04"


outcomes = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(-1, 5), st.booleans(), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(outcomes)
def test_an_interval_holds_its_rate_and_is_no_narrower_than_that_of_independent_answers(
    answers: list[tuple[str, int, bool, bool]],
) -> None:
    def lines(*, buckets: bool) -> Iterator[OutcomeLine]:
        for arm, bucket, clicked, bought in answers:
            kinds = [IMPRESSION, *([CLICK] if clicked else []), *([PURCHASE] if bought else [])]
            yield from named(arm, *kinds, bucket=bucket if buckets else -1)

    with_buckets, without = (experiment_report(lines(buckets=each)) for each in (True, False))
    for one, other in zip(
        stratum(with_buckets, "answers").arms, stratum(without, "answers").arms, strict=True
    ):
        for wide, narrow in (
            (one.click_rate, other.click_rate),
            (one.conversion_rate, other.conversion_rate),
        ):
            assert 0 <= wide.low <= wide.mean <= wide.high <= 1
            assert wide.mean == narrow.mean
            assert wide.high - wide.low >= narrow.high - narrow.low - 1e-12
    for difference in stratum(with_buckets, "answers").differences:
        assert difference.click_rate.low <= difference.click_rate.mean <= difference.click_rate.high


def simulated(rng: np.random.Generator, *, buckets: bool) -> Rate:
    """The difference between two equal arms, where persons differ much and come several times."""
    lines: list[OutcomeLine] = []
    for arm in "ab":
        for bucket in rng.integers(100, size=120).tolist():
            rate = rng.beta(0.3, 1.2)
            for clicked in (rng.random(8) < rate).tolist():
                kinds = [IMPRESSION, CLICK] if clicked else [IMPRESSION]
                lines += named(arm, *kinds, bucket=bucket if buckets else -1)
    [difference] = stratum(experiment_report(lines), "answers").differences
    return difference.click_rate


def test_the_interval_covers_as_often_as_it_says_although_answers_of_a_person_resemble_each_other() -> None:
    def coverage(*, buckets: bool) -> float:
        rng = np.random.default_rng(7)
        rates = [simulated(rng, buckets=buckets) for _ in range(300)]
        return float(np.mean([rate.low <= 0 <= rate.high for rate in rates]))

    assert coverage(buckets=True) == pytest.approx(0.95, abs=0.03)
    assert coverage(buckets=False) < 0.8, (
        "without buckets the interval must be too narrow, or this shows nothing"
    )
