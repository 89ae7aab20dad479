"""A recommender whose bundles are exchanged while it answers.

New bundles are opened and verified beside the way of the requests, then all that changed is exchanged at
once: one reference to an immutable `Recommender`. A request that has begun ends with the recommender that it
began with. What is wrong with a new bundle never takes over:

- altered, malformed, of another tier, past its withdrawal deadline, or with an earlier training cut-off than
  the one in use (unless it was rolled back to on purpose, see `serving.routing`): the old one stays, and
  `problems` and each answer's basis say why;
- gone, while the directory is there: the tier stops, for that is how a trainer withdraws a model;
- changed in place, so that the mapped memory of the old one changed too: the tier stops.

Where a tier has stopped, or its old bundle passes its own deadline, the next lower tier answers.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, TypedDict, Unpack

from consentier.consent import Policy, Tier
from consentier.errors import BundleError
from consentier.serving.answer import Answer
from consentier.serving.forking import tell_of_forks
from consentier.serving.loading import (
    TIERS,
    CatalogueSource,
    OpenedBundles,
    OpenedTier,
    none_usable,
    open_tier,
    problem_of,
    read_shop_rules,
)
from consentier.serving.protocols import AuditSink, ConsentLedger, InputKeys
from consentier.serving.recommender import Recommender, policy_of, utc_now
from consentier.serving.request import Request
from consentier.serving.revocation import Deadlines, Revocations
from consentier.serving.routing import Routing, read_routing
from consentier.serving.rules import Rules
from consentier.serving.trending import Trends
from consentier.serving.view import Profiles
from consentier.writing import REPLACED

__all__ = ["BundleSource", "LoadOptions", "Outcome", "ReloadingRecommender", "TierReload"]

_log = logging.getLogger("consentier.serving")

_SIDE_CAR, _ARRAY = "run.json", ".npy"

_SETTLED = 2 * 10**9
"""Nanoseconds after which a change of a file must show in its times."""


class BundleSource(Protocol):
    """Where bundles come from, if not from a directory that somebody else writes."""

    @property
    def directory(self) -> Path:
        """Where they stand: one bundle per tier, under the tier's name, and the revocation list."""
        ...

    def fetch(self) -> Mapping[Tier, str]:
        """Bring new bundles into the directory, whole and verified; say by tier what failed. Never raises."""
        ...


class LoadOptions(TypedDict, total=False):
    """The options of `Recommender.load`, but for those of the bundles themselves."""

    ledger: ConsentLedger | None
    ledger_deadline: float
    policy: Policy | str | Path | None
    profiles: Profiles | None
    profile_deadline: float | None
    audit_key: bytes | None
    keyring: InputKeys | None
    audit: AuditSink | None
    clock: Callable[[], dt.datetime]
    trending: Trends | None


class Outcome(enum.StrEnum):
    """What a look at a tier's bundle led to."""

    UNCHANGED = "unchanged"
    OPENED = "opened"
    """The tier had no model and has one now."""
    REPLACED = "replaced"
    KEPT = "kept"
    """The new bundle is not used, the old one stays."""
    STOPPED = "stopped"
    """The old bundle is not used any more, and there is no new one."""
    MISSING = "missing"
    """The tier had no model and has none."""


@dataclasses.dataclass(frozen=True, slots=True)
class TierReload:
    """What happened to one tier.

    Attributes
    ----------
    outcome
        In a word.
    digest
        The bundle in use now; None without one.
    problem
        What is wrong with the bundle that is not used; empty where nothing is.
    """

    outcome: Outcome
    digest: str | None
    problem: str = ""


_Files = Mapping[str, tuple[int, ...]]
"""By name: what tells one version of a file from another."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """The files of a bundle at one moment."""

    directory: tuple[int, int]
    files: _Files
    settled: bool = dataclasses.field(compare=False)
    """Whether the files were left alone for so long that their times would tell of a change."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Slot:
    """One tier: its model, the files it was opened from, what is wrong with newer ones."""

    opened: OpenedTier | None = None
    look: _Look | None = None
    problem: str = ""
    cutoff: str = ""
    """The latest that was in use: a tier that stopped does not go back behind it either."""

    def told(self, outcome: Outcome) -> TierReload:
        return TierReload(outcome, None if self.opened is None else self.opened.digest, self.problem)

    def refusing(self, problem: str) -> tuple[_Slot, Outcome]:
        """The slot when a new bundle is not used."""
        if self.opened is None:
            return dataclasses.replace(self, problem=problem), Outcome.MISSING
        kept = f"the bundle in use stays: {problem}"
        return dataclasses.replace(self, problem=kept), Outcome.KEPT

    def stopped(self, problem: str) -> tuple[_Slot, Outcome]:
        """The slot when the old bundle is not used any more."""
        return _Slot(problem=problem, cutoff=self.cutoff), Outcome.STOPPED


class ReloadingRecommender:
    """A recommender that follows the bundles of a directory, or of another source.

    It answers as `Recommender` does, from the one that is current. Safe to use from any number of threads; no
    request waits for a lock.

    Parameters
    ----------
    source
        The directory of the bundles, or a `BundleSource` such as `RegistrySource` for MLflow.
    every
        Seconds between two looks of the background thread (`start`).
    catalogue, rules, filter_by, compiled, **options
        As in `Recommender.load`. They stay as they are: what is reloaded are the bundles.

    Raises
    ------
    BundleMissing
        If there is no bundle that can be used.
    ValueError
        If `every` is not a positive number of seconds.
    TypeError, ValueError, DataError, PolicyError, ConfigError
        As in `Recommender.load`.

    Notes
    -----
    A look at bundles that did not change costs a ``stat`` of each file: 0.2 ms for five tiers. A new bundle
    costs one pass over its bytes, in the thread that looks. Until the last request that uses it has ended,
    the old one's memory stays mapped.
    """

    def __init__(
        self,
        source: str | Path | BundleSource,
        *,
        every: float = 60.0,
        catalogue: CatalogueSource | None = None,
        rules: Rules | str | Path | None = None,
        filter_by: Iterable[str] = (),
        compiled: bool = True,
        **options: Unpack[LoadOptions],
    ) -> None:
        if not 0 < every < float("inf"):
            raise ValueError(f"every must be a positive number of seconds, not {every}")
        self._source = _Directory(Path(source)) if isinstance(source, str | Path) else source
        self._every = every
        self._catalogue, self._rules = read_shop_rules(catalogue, rules, filter_by)
        self._compiled = compiled
        self._clock = options.get("clock", utc_now)
        self._new_locks()
        self._thread: threading.Thread | None = None
        self._left_behind = False  # the thread of the background stayed in the process that forked this one
        self._look_now = False
        self._verifying: int | None = None  # as many threads as there are cores: nobody is served yet
        fetched = self._source.fetch()
        # One object for good: it remembers that there was a list, so that none counts as one that is lost.
        self._revocations = Revocations.open(self._source.directory)
        self._slots = {tier: _Slot() for tier in TIERS}
        self._look_at_all(fetched)
        self._verifying = 1  # from here on beside the requests, and beside other workers that look, too
        opened = self._opened()
        if not opened.tiers:
            named = isinstance(source, str | Path)
            raise none_usable(self._source.directory, opened.problems, named=named)
        self._policy = policy_of(options.get("policy"))
        given: LoadOptions = {**options, "policy": self._routing().applied_to(self._policy)}
        self._current = Recommender.over(opened, self._revocations, **given)
        tell_of_forks(self)

    @property
    def current(self) -> Recommender:
        """The recommender that answers now. It never changes; the next look may put another in its place."""
        if self._left_behind:
            self._start_again()
        return self._current

    @property
    def problems(self) -> Mapping[Tier, str]:
        """Why a tier has no model, or still has the one it had."""
        return self.current.problems

    def recommend(self, request: Request) -> Answer:
        """As `Recommender.recommend`."""
        return self.current.recommend(request)

    def similar(self, item_id: str, *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """As `Recommender.similar`."""
        return self.current.similar(item_id, n=n, exclude=exclude)

    def basket(self, items: Iterable[str], *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """As `Recommender.basket`."""
        return self.current.basket(items, n=n, exclude=exclude)

    def check(self) -> Mapping[Tier, TierReload]:
        """Look for new bundles now and use what is good; say what happened, by tier.

        Never raises for what is wrong with bundles or their source. Several callers take turns.
        """
        with self._looking:
            self._look_now = False
            told = self._look_at_all(self._source.fetch())
            opened = self._opened()
            self._current = dataclasses.replace(
                self._current,
                scorers=opened.scorers,
                popular=opened.popular,
                problems=opened.problems,
                policy=self._routing().applied_to(self._policy),
            )
        return told

    def start(self) -> None:
        """Look every so many seconds, in a thread of the background, until `stop`.

        In a process that is forked from then on, the thread starts again with the first request; in one that
        was forked from where the bundles were opened, it looks at once.

        Raises
        ------
        RuntimeError
            If it is running already.
        """
        with self._starting:
            if self._thread is not None:
                raise RuntimeError("the reloading thread is running already")
            self._start()

    def stop(self) -> None:
        """End the thread of the background and wait for it. The recommender goes on answering."""
        thread, self._thread = self._thread, None
        self._left_behind = False
        if thread is not None:
            self._wake.set()
            thread.join()

    def __enter__(self) -> ReloadingRecommender:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def after_fork(self) -> None:
        """For forked processes: neither the thread is here, nor whoever held a lock."""
        self._new_locks()
        self._left_behind = self._left_behind or self._thread is not None
        self._thread = None
        self._look_now = True  # the other process may have opened its bundles long ago

    def _new_locks(self) -> None:
        self._looking, self._starting = threading.Lock(), threading.Lock()
        self._wake = threading.Event()

    def _start(self) -> None:
        self._wake.clear()
        thread = threading.Thread(target=self._run, name="consentier-reload", daemon=True)
        thread.start()
        self._thread, self._left_behind = thread, False

    def _start_again(self) -> None:
        with self._starting:
            if not self._left_behind:
                return
            try:
                self._start()
            except RuntimeError as error:  # a request is answered also where the system gives no more threads
                _log.error("bundles are not followed: %s", error)

    def _run(self) -> None:
        while self._look_now or not self._wake.wait(self._every):
            self._look_now = False
            try:
                self.check()
            except Exception as error:  # noqa: BLE001 - whatever a source raises, the next look may succeed
                _log.error("looking for new bundles failed: %s", type(error).__name__)

    def _routing(self) -> Routing:
        """What the registry has decided; said in the log where that cannot be known."""
        routing = read_routing(self._source.directory)
        if routing.fault:
            _log.warning("the fused tier does not answer: %s", routing.fault)
        return routing

    def _look_at_all(self, fetched: Mapping[Tier, str]) -> Mapping[Tier, TierReload]:
        told: dict[Tier, TierReload] = {}
        deadlines = self._revocations.current()
        reachable = self._source.directory.is_dir()
        for tier, slot in self._slots.items():
            if reachable:
                after, outcome = self._after_look(tier, slot, deadlines)
            else:
                after, outcome = slot.refusing(f"{self._source.directory} is no directory (any more)")
            if tier in fetched and outcome is not Outcome.STOPPED:
                after, refused = after.refusing(fetched[tier])
                outcome = refused if outcome is Outcome.UNCHANGED else outcome
            if after.problem and after.problem != slot.problem:
                _log.warning("the %s tier: %s: %s", tier, outcome, after.problem)
            elif outcome in (Outcome.OPENED, Outcome.REPLACED):
                _log.info("the %s tier: %s", tier, outcome)
            self._slots[tier] = after
            told[tier] = after.told(outcome)
        return MappingProxyType(told)

    def _after_look(self, tier: Tier, slot: _Slot, deadlines: Deadlines) -> tuple[_Slot, Outcome]:
        """What becomes of a tier."""
        path = self._source.directory / tier
        old = slot.opened
        before = None
        try:
            before = _look(path)
            if old is not None and slot.look is not None and slot.look.settled and before == slot.look:
                return dataclasses.replace(slot, problem=""), Outcome.UNCHANGED
            new = open_tier(
                path,
                tier,
                self._catalogue,
                deadlines,
                self._clock(),
                rules=self._rules,
                compiled=self._compiled,
                threads=self._verifying,
            )
            back = new.cutoff < slot.cutoff
            if back and not read_routing(self._source.directory).may_go_back(tier, new.digest):
                raise BundleError(f"the training cut-off {new.cutoff} is before {slot.cutoff}, used already")
            after = _look(path)
        except Exception as error:  # noqa: BLE001 - a bundle's fault, whatever it is, never takes over
            if old is not None and _withdrawn(path):
                return slot.stopped("the bundle was removed")
            if old is not None and _changed_in_place(slot.look, before) and _still(path, before):
                return slot.stopped(f"the bundle in use was changed in place: {problem_of(error)}")
            return slot.refusing(problem_of(error))
        # Also of an equal bundle, so that what is mapped and what is looked at are the same files.
        changed = _Slot(new, before if before == after else None, cutoff=new.cutoff)
        if old is None:
            return changed, Outcome.OPENED
        return changed, Outcome.UNCHANGED if new.digest == old.digest else Outcome.REPLACED

    def _opened(self) -> OpenedBundles:
        return OpenedBundles(
            MappingProxyType({tier: slot.opened for tier, slot in self._slots.items() if slot.opened}),
            MappingProxyType({tier: slot.problem for tier, slot in self._slots.items() if slot.problem}),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Directory:
    """A directory that somebody else writes."""

    directory: Path

    def fetch(self) -> Mapping[Tier, str]:
        return {}


def _look(path: Path) -> _Look | None:
    """The files of a bundle now; None where there is no directory.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    now = time.time_ns()
    try:
        directory = path.stat()
        with os.scandir(path) as listing:
            found = {entry.name: entry.stat() for entry in listing if entry.name != _SIDE_CAR}
    except FileNotFoundError:
        return None
    newest = max(
        (max(facts.st_mtime_ns, facts.st_ctime_ns) for facts in (directory, *found.values())), default=0
    )
    return _Look(
        (directory.st_dev, directory.st_ino),
        {
            name: (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            for name, facts in found.items()
        },
        settled=newest + _SETTLED < now,
    )


def _changed_in_place(opened: _Look | None, now: _Look | None) -> bool:
    """Whether an array that is mapped may not be any more what it was.

    Asked where verification failed. Of files that were fresh when they were opened, times tell nothing. Other
    files than arrays are not mapped: a new file may have the identity of one that was deleted.
    """
    if opened is None or now is None:
        return False
    return any(
        now.files[name][:2] == facts[:2] and (now.files[name] != facts or not opened.settled)
        for name, facts in opened.files.items()
        if name in now.files and name.endswith(_ARRAY)
    )


def _still(path: Path, before: _Look | None) -> bool:
    """Whether the files are those of a look before: else what failed may have been others, just put there."""
    try:
        return _look(path) == before
    except OSError:
        return False


def _withdrawn(path: Path) -> bool:
    """Whether a bundle was removed, and is not just about to be replaced."""
    former = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{16}" + re.escape(REPLACED))
    # In this order: whoever replaces it has the former one aside in the moment in which it is gone, and the
    # new one in place before the former one is deleted.
    if os.path.lexists(path):
        return False
    try:
        if any(former.fullmatch(entry.name) for entry in path.parent.iterdir()):
            return False
    except OSError:
        return False
    return not os.path.lexists(path)
