"""How a service's answers are measured: which tier answered, why, on which side, and how fast.

What is measured is an `Observation`: three words out of short fixed lists, and a number of seconds. It holds
no id of a person, a session or an item, so that whatever collects observations can learn none. Prometheus is
imported only when `prometheus_observer` is called.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from consentier.consent import Side, Tier
from consentier.serving.answer import Answer
from consentier.serving.guarded_ledger import LEDGER_FAULT
from consentier.serving.patience import NOT_ASKED
from consentier.serving.protocols import Answering
from consentier.serving.recommender import (
    EXPLORATION_FAULT,
    NOTHING_KNOWN,
    NOTHING_TO_FILL,
    NOTHING_TO_SHOW,
)
from consentier.serving.request import Request

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["BUCKETS", "MeasuredRecommender", "Observation", "ReasonClass", "prometheus_observer", "reason_of"]

_log = logging.getLogger("consentier.serving")

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds of the histogram of latencies, in seconds."""

_NOTHING = frozenset({NOTHING_KNOWN, NOTHING_TO_FILL, NOTHING_TO_SHOW})


class ReasonClass(enum.StrEnum):
    """Why it was this tier and no better one."""

    PERMITTED = "permitted"
    """It is the best one that the permission allows in this channel; or it allows none."""
    NOTHING_KNOWN = "nothing_known"
    """The better ones had nothing to say: no history that they know, or nothing of it that may be shown."""
    FAULT = "fault"
    """A better one, or the popular list or what is drawn from it, is missing, past its deadline, failed, or
    could not read a store."""
    LEDGER_FAULT = "ledger_fault"
    """The consent ledger failed or gave no answer in time, so that nothing is permitted."""
    LEDGER_NOT_ASKED = "ledger_not_asked"
    """The consent ledger is left alone, as it gave no answer in time lately, so that nothing is permitted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """What is measured of one answer.

    Attributes
    ----------
    tier
        Who answered.
    reason
        Why it was no better tier.
    side
        The side of the channel.
    seconds
        How long the answer took.
    """

    tier: Tier
    reason: ReasonClass
    side: Side
    seconds: float


def reason_of(answer: Answer) -> ReasonClass:
    """Why it was this tier and no better one, as one of five words.

    Parameters
    ----------
    answer
        An answer with its basis, whose `reasons` end with the tiers that were passed over, and what failed.
    """
    passed_over = _passed_over(answer.basis.reasons)
    of_ledger = [reason for reason in passed_over if reason.startswith(f"{LEDGER_FAULT}: ")]
    if of_ledger:
        not_asked = f"{LEDGER_FAULT}: {NOT_ASKED}" in of_ledger
        return ReasonClass.LEDGER_NOT_ASKED if not_asked else ReasonClass.LEDGER_FAULT
    # What is said of the tier that answered itself is that a newer bundle of it is not used.
    better = [reason for reason in passed_over if not reason.startswith(f"{answer.tier}: ")]
    if not better:
        return ReasonClass.PERMITTED
    if all(reason.partition(": ")[2] in _NOTHING for reason in better):
        return ReasonClass.NOTHING_KNOWN
    return ReasonClass.FAULT


def _passed_over(reasons: Sequence[str]) -> list[str]:
    """The last of an answer's reasons, as far back as they begin with the name of a tier or of what failed.

    Those of the permissions do so too ("crm: denied"); between them and these stand those of the route, which
    are sentences.
    """
    found = []
    for reason in reversed(reasons):
        if reason.partition(": ")[0] not in _STEPS:
            break
        found.append(reason)
    return found


_STEPS = frozenset({*(str(tier) for tier in Tier), LEDGER_FAULT, EXPLORATION_FAULT})


class MeasuredRecommender:
    """Answers as another recommender does, and tells an observer of each answer to a request.

    Parameters
    ----------
    recommender
        What answers: a `Recommender`, or one that reloads or divides requests among several.
    observe
        Gets one observation per answer, in the thread that answered. Whatever it raises is logged, and fails
        no request.

    Notes
    -----
    Inside an `AsyncRecommender`, the time that a request waits for a thread is not measured.
    """

    def __init__(self, recommender: Answering, observe: Callable[[Observation], object]) -> None:
        self._recommender = recommender
        self._observe = observe

    def recommend(self, request: Request) -> Answer:
        """As `Recommender.recommend`."""
        begun = time.perf_counter()
        answer = self._recommender.recommend(request)
        self._tell(answer, time.perf_counter() - begun)
        return answer

    def similar(self, item_id: str, *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """As `Recommender.similar`. Reads no person, and is not measured."""
        return self._recommender.similar(item_id, n=n, exclude=exclude)

    def basket(self, items: Iterable[str], *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """As `Recommender.basket`. Reads no person, and is not measured."""
        return self._recommender.basket(items, n=n, exclude=exclude)

    def _tell(self, answer: Answer, seconds: float) -> None:
        try:
            self._observe(Observation(answer.tier, reason_of(answer), Side(answer.basis.side), seconds))
        except Exception as error:  # noqa: BLE001 - an observer's fault, whatever it is, fails no request
            _log.error("the observer of answers failed: %s", type(error).__name__)


def prometheus_observer(registry: CollectorRegistry | None = None) -> Callable[[Observation], None]:
    """An observer that counts answers and their latency for Prometheus.

    Parameters
    ----------
    registry
        Where the histogram ``consentier_answer_seconds`` is registered; the process's own by default.

    Returns
    -------
    Callable
        For `MeasuredRecommender`. Safe to call from any number of threads.

    Raises
    ------
    ModuleNotFoundError
        If prometheus_client is not installed (extra ``metrics``).
    ValueError
        If the registry holds such a histogram already.

    Notes
    -----
    The labels ``tier`` (6), ``reason`` (5) and ``side`` (2) make 60 series at most.
    """
    from prometheus_client import REGISTRY, Histogram

    histogram = Histogram(
        "consentier_answer_seconds",
        "Time that an answer took, by tier, by why it was no better one, and by side of the channel",
        ("tier", "reason", "side"),
        buckets=BUCKETS,
        registry=REGISTRY if registry is None else registry,
    )

    def observe(seen: Observation) -> None:
        histogram.labels(str(seen.tier), str(seen.reason), str(seen.side)).observe(seen.seconds)

    return observe
