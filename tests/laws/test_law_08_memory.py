"""Eighth law, in the memory of a service: an answer that was given leaves nothing of whom it was given to.

We promise: once a request is answered, nothing of it is left in what the engine keeps: no id, no event, no
attribute, in no cache, global or counter. So there is nothing that a withdrawal would have to find there.
(Filters are the exception: the shop writes them, and they are kept by their text.)
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterable, Iterator

import pytest
from breaking import Break, assert_breaks, breaks
from engines import CATALOGUE, ITEMS, bundles
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from consentier.consent import Channel, Ledger, Permission
from consentier.serving import Recommender, Request, recommender
from consentier.serving.metrics import MeasuredRecommender, prometheus_observer
from consentier.serving.request import Event

MARKER = "nemo7f3a"
"""It begins whatever a request says of somebody."""

Case = tuple[Permission | None, Channel, bool, bool]
"""The permission that is declared (None: the ledger is asked), the channel, a login, and an explanation."""


def request(case: Case) -> Request:
    permission, channel, linked, explain = case
    return Request(
        visitor_id=f"{MARKER}-visitor",
        customer_id=f"{MARKER}-customer",
        session=[ITEMS[0], f"{MARKER}-session"],
        online_history=[ITEMS[1], Event(f"{MARKER}-online", event_type=f"{MARKER}-view")],
        crm_history=[ITEMS[2], f"{MARKER}-crm"],
        attributes={f"{MARKER}-name": f"{MARKER}-value", "age": 33},
        exclude=[f"{MARKER}-exclude"],
        channel=channel,
        permission=permission,
        linked=linked,
        explain=explain,
    )


def parts(thing: object) -> Iterable[object]:
    """What an object holds; of a function its closure and defaults, for modules are looked through anyway."""
    if isinstance(thing, dict):  # the collector does not look into one that holds texts and numbers only
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, list | tuple | set | frozenset):
        return list(thing)
    if isinstance(thing, types.FunctionType):
        return [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
    if isinstance(thing, types.ModuleType | types.FrameType | types.CodeType):
        return []
    if isinstance(thing, type) and not thing.__module__.startswith("consentier"):
        return []
    return gc.get_referents(thing)


def kept(*roots: object) -> Iterator[str]:
    """All texts that can be reached from some objects and from the engine's own modules."""
    modules = [vars(module) for name, module in sys.modules.items() if name.partition(".")[0] == "consentier"]
    seen: dict[int, object] = {}
    waiting: list[object] = [*roots, *modules]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, str):
            yield each
        elif isinstance(each, bytes | bytearray):
            yield each.decode("latin-1")
        else:
            waiting.extend(parts(each))


def check_that_nothing_is_left(case: Case) -> None:
    """An answered request leaves no text of its own."""
    vars(recommender).pop("_seen", None)  # what a broken rule below has left
    ledger = Ledger() if case[0] is None else None
    plain = Recommender.load(bundles(), ledger=ledger, catalogue=CATALOGUE)
    asked = MeasuredRecommender(plain, prometheus_observer(CollectorRegistry()))
    assert asked.recommend(request(case)).items
    found = [text for text in kept(asked) if MARKER in text]
    assert found == []


cases: st.SearchStrategy[Case] = st.tuples(
    st.sampled_from([None, *(Permission(bits) for bits in range(4))]),
    st.sampled_from([Channel.SHOP, Channel.EMAIL]),
    st.booleans(),
    st.booleans(),
)


@given(cases)
@settings(max_examples=20)
def test_an_answer_leaves_nothing_of_the_person_in_memory(case: Case) -> None:
    check_that_nothing_is_left(case)


@breaks(
    Break(
        "who asked is remembered",
        recommender._query,
        "n=request.n,",
        'n=globals().setdefault("_seen", {}).setdefault(request.visitor_id, request.n),',
        (Permission(0), Channel.SHOP, False, False),
    ),
    Break(
        "what was seen is remembered",
        recommender._excluded,
        "excluded = frozenset(request.exclude)",
        'excluded = globals().setdefault("_seen", frozenset(request.exclude))',
        (Permission(0), Channel.SHOP, False, False),
    ),
)
def test_what_is_remembered_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_that_nothing_is_left, cases, broken)
    vars(recommender).pop("_seen", None)


def test_the_walk_reaches_caches_and_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    import functools

    cache = functools.cache(len)
    cache(f"{MARKER}-cached")
    monkeypatch.setattr(recommender, "_kept", {"by": (f"{MARKER}-global",)}, raising=False)
    assert {text for text in kept(cache) if text.startswith(MARKER)} >= {
        f"{MARKER}-cached",
        f"{MARKER}-global",
    }
