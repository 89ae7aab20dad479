"""The recommender as a shop meets it: how many items, which, in which order."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from engines import CATALOGUE, ITEMS, bundles, engine
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Channel, ConsentRecord, Ledger, Link, Permission, Policy, Tier, microseconds
from consentier.consent.keyring import Keyring
from consentier.errors import BundleMissing
from consentier.serving import Answer, Catalogue, Event, Profiles, Recommender, Request
from consentier.serving import recommender as recommender_module

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
BOTH = Permission.ONLINE | Permission.CRM

_histories = st.lists(st.sampled_from((*ITEMS, "unheard-of")), max_size=6)
_ids = st.frozensets(st.sampled_from((*ITEMS, "brand-new", "unheard-of")), max_size=8)
requests: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "session": _histories,
        "online_history": _histories,
        "crm_history": _histories,
        "permission": st.sampled_from([Permission.NONE, Permission.ONLINE, Permission.CRM, BOTH]),
        "linked": st.booleans(),
        "channel": st.sampled_from(Channel),
        "n": st.integers(1, 16),
        "exclude": _ids,
        "allow": st.none() | _ids,
        "placement": st.sampled_from((None, "product")),
    }
)
SHOPS = [(hide, catalogue) for hide in ((), ("crm", "online")) for catalogue in (None, CATALOGUE)]


@settings(max_examples=200)
@given(shop=st.sampled_from(SHOPS), asked=requests)
def test_exactly_n_distinct_items_that_may_be_shown_best_first(
    shop: tuple[tuple[str, ...], Catalogue | None], asked: dict[str, Any]
) -> None:
    hide, catalogue = shop
    answer = engine(hide, catalogue).recommend(Request(**asked))
    showable = set(ITEMS) if catalogue is None else set(catalogue.available)
    showable -= asked["exclude"]
    showable &= showable if asked["allow"] is None else asked["allow"]
    if asked["placement"] == "product" and asked["channel"] in ("shop", "app", "ads"):
        showable -= set(asked["session"][-1:])
    if answer.tier in (Tier.FUSED, Tier.CRM) and "crm" in hide:
        showable -= set(asked["crm_history"])
    if answer.tier in (Tier.FUSED, Tier.ONLINE) and "online" in hide:
        showable -= set(asked["online_history"])
    assert set(answer.items) <= showable
    assert len(set(answer.items)) == len(answer.items) == min(asked["n"], len(showable))
    assert list(answer.scores) == sorted(answer.scores, reverse=True)
    assert len(answer.scores) == len(answer.items)
    assert answer.basis.filled == sum(score == 0 for score in answer.scores)


def test_the_item_on_the_page_is_recommended_by_no_tier() -> None:
    request = Request(
        session=["item-05", "item-00"],
        online_history=["item-03"],
        placement="product",
        n=30,
        permission=BOTH,
        linked=True,
    )
    for missing in range(5):
        tiers = list(engine().scorers)[missing:]
        asked = dataclasses.replace(engine(), scorers={tier: engine().scorers[tier] for tier in tiers})
        assert "item-00" not in asked.recommend(request).items
        elsewhere = dataclasses.replace(request, placement="home")
        assert "item-00" in asked.recommend(elsewhere).items


def test_the_end_of_a_session_says_most() -> None:
    forwards = engine().recommend(Request(session=["item-01", "item-07"]))
    backwards = engine().recommend(Request(session=["item-07", "item-01"]))
    assert forwards.tier is backwards.tier is Tier.SESSION
    assert forwards.scores != backwards.scores


def test_unknown_items_are_counted() -> None:
    answer = engine().recommend(Request(session=["unheard-of", "item-01", "never-seen"]))
    assert answer.basis.unknown_items == 2


def test_similar_items_and_baskets_leave_out_what_was_asked_about() -> None:
    similar = engine((), CATALOGUE).similar("item-01", n=12, exclude=["item-02"])
    assert similar.tier is Tier.SESSION
    assert similar.items
    assert not {"item-01", "item-02"} & set(similar.items)
    basket = engine((), CATALOGUE).basket(["item-01", "item-03"], n=30)
    assert set(basket.items) == set(CATALOGUE.available) - {"item-01", "item-03"}
    assert engine().similar("unheard-of", n=3).tier is Tier.POPULAR
    with pytest.raises(TypeError, match="takes an item id"):
        engine().similar(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        engine().basket("item-01")
    with pytest.raises(ValueError, match="at least 1"):
        engine().similar("item-01", n=0)


def test_the_popular_list_is_that_of_the_side() -> None:
    online, crm = (
        engine().recommend(Request(channel=channel, n=2)) for channel in (Channel.SHOP, Channel.EMAIL)
    )
    assert (online.items, crm.items) == (ITEMS[:2], ("sold-out", "pills"))
    assert online.tier is crm.tier is Tier.POPULAR


def test_histories_in_a_request_take_precedence_over_stores() -> None:
    stores = Profiles({"v": (Event("item-01"),)}, {"c": (Event("item-02"),)}, {"c": {"region": "south"}})
    asked = dataclasses.replace(engine(), profiles=stores)
    stored = Request(permission=BOTH, linked=True, visitor_id="v", customer_id="c")
    brought = Request(
        permission=BOTH,
        linked=True,
        online_history=["item-01"],
        crm_history=["item-02"],
        attributes={"region": "south"},
    )
    assert asked.recommend(stored) == asked.recommend(brought)
    emptied = dataclasses.replace(stored, online_history=(), crm_history=(), attributes={})
    assert asked.recommend(emptied).tier is Tier.POPULAR


def linked_shop(*, fusion: str | None = None) -> Ledger:
    """Customer c on devices v1 and v2; perhaps v1 granted the joining of data."""
    said = [("v1", "visitor", "online"), ("v2", "visitor", "online"), ("c", "customer", "crm")]
    said += [("v1", "visitor", "fusion")] if fusion else []
    long_ago = AT - dt.timedelta(days=9)
    return Ledger(
        (
            ConsentRecord(f"{who} {what}", who, kind, what, "granted", long_ago, long_ago)  # type: ignore[arg-type]
            for who, kind, what in said
        ),
        (Link(device, "c", long_ago) for device in ("v1", "v2")),
    )


def days_before(number: int, item: str) -> Event:
    return Event(item, ts=AT - dt.timedelta(days=number))


def ask_both_devices(ledger: Ledger, stores: Profiles, policy: Policy | None = None) -> Answer:
    asked = dataclasses.replace(engine(), ledger=ledger, profiles=stores, policy=policy or Policy.default())
    return asked.recommend(Request(visitor_id="v1", customer_id="c", linked=True, at=AT, n=14))


def test_the_latest_events_of_all_devices_count_whichever_device_they_are_from() -> None:
    # The model reads six events: the six latest are those of v1, although v2 comes after it.
    recent = tuple(days_before(number, ITEMS[number]) for number in range(6, 0, -1))
    old = tuple(days_before(number, ITEMS[number % 4 + 7]) for number in range(30, 20, -1))
    both = ask_both_devices(linked_shop(), Profiles({"v1": recent, "v2": old}))
    assert both.tier is Tier.FUSED
    assert both.scores == ask_both_devices(linked_shop(), Profiles({"v1": recent})).scores
    assert both.scores == ask_both_devices(linked_shop(), Profiles({"v1": old, "v2": recent})).scores


def test_a_device_without_the_joint_purpose_is_not_read_where_the_notice_asks_for_it() -> None:
    stores = Profiles({"v1": (days_before(2, ITEMS[1]),), "v2": (days_before(1, ITEMS[2]),)})
    default = Policy.default()
    asks = Policy("asks", default.matrix, dataclasses.replace(default.switches, fusion_purpose=True))
    answer = ask_both_devices(linked_shop(fusion="v1"), stores, asks)
    assert answer.tier is Tier.FUSED
    assert (
        answer.scores
        == ask_both_devices(linked_shop(fusion="v1"), Profiles({"v1": stores.online["v1"]}), asks).scores
    )


def test_eight_threads_get_the_same_answers() -> None:
    asked = Recommender.load(bundles(), catalogue=CATALOGUE, audit_key=b"key")
    questions = [
        Request(session=ITEMS[k : k + 3], online_history=ITEMS[: k % 5], permission=Permission.ONLINE, n=8)
        for k in range(10)
    ] * 8
    alone = [asked.recommend(request) for request in questions]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(asked.recommend, questions)) == alone


def test_a_policy_may_come_from_a_file(tmp_path: Any) -> None:
    text = "version = 'mine'\n[matrix]\n" + "".join(
        f"{state} = {{ online = ['session'], crm = [] }}\n"
        for state in ("none", "online", "crm", "both_linked", "both_unlinked", "objected")
    )
    (tmp_path / "policy.toml").write_text(text)
    asked = Recommender.load(bundles(), policy=tmp_path / "policy.toml")
    answer = asked.recommend(Request(session=ITEMS[:2], permission=BOTH, linked=True))
    assert (answer.tier, answer.basis.policy_version) == (Tier.SESSION, "mine")
    assert asked.recommend(Request(permission=BOTH, channel=Channel.EMAIL)).tier is Tier.NONE


# --- audit, keys and clock ----------------------------------------------------------------------------------


class Sink:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Request, Answer]] = []

    def write(self, request: Request, answer: Answer) -> None:
        self.told.append((request, answer))


class FullSink:
    """Cannot write anything."""

    def write(self, request: Request, answer: Answer) -> None:
        raise OSError(f"no space left for {request.customer_id}")


def test_each_answer_is_accounted_for_with_its_request() -> None:
    sink = Sink()
    asked = dataclasses.replace(engine(), audit=sink)
    request = Request(session=ITEMS[:2], permission=BOTH)
    nothing = dataclasses.replace(asked, scorers={}, popular=None)
    answers = [
        asked.recommend(request),
        asked.similar(ITEMS[0]),
        asked.basket(ITEMS[:2]),
        nothing.recommend(request),
    ]
    assert [answer for _, answer in sink.told] == answers
    whole = request.session
    assert [told.session for told, _ in sink.told] == [whole, (Event(ITEMS[0]),), whole, whole]
    assert answers[-1].tier is Tier.NONE


def test_a_sink_that_fails_fails_no_request_and_quotes_nobody(caplog: pytest.LogCaptureFixture) -> None:
    asked = dataclasses.replace(engine(), audit=FullSink())
    request = Request(session=ITEMS[:2], customer_id="c-marker")
    assert asked.recommend(request) == engine().recommend(request)
    assert asked.similar(ITEMS[0]) == engine().similar(ITEMS[0])
    assert caplog.messages == ["the audit sink failed: OSError"] * 2


def test_with_a_keyring_digests_name_their_key_and_can_be_made_again_from_the_inputs() -> None:
    keyring = Keyring.ephemeral()
    asked = Recommender.load(bundles(), keyring=keyring)
    request = Request(crm_history=ITEMS[:1], attributes={"age": 40}, permission=BOTH, channel=Channel.EMAIL)
    digests = asked.recommend(request).basis.input_digests
    text = '["crm",[["item-00",null,null,null]]]'
    assert digests["crm"] == keyring.digest("input:crm", text)
    assert digests["crm"].startswith(f"{keyring.current_id}:")
    assert digests["attributes"] == keyring.digest("input:attributes", '["attributes",{"age":40}]')
    keyring.rotate(AT)
    again = asked.recommend(request).basis.input_digests
    assert again["crm"] != digests["crm"]
    assert digests["crm"] in keyring.digests("input:crm", text)


def test_one_kind_of_key_at_a_time() -> None:
    with pytest.raises(ValueError, match="audit_key or keyring, not both"):
        Recommender.load(bundles(), audit_key=b"key", keyring=Keyring.ephemeral())


def test_a_request_without_an_instant_is_asked_now_by_the_clock() -> None:
    now = [AT]
    ends = AT + dt.timedelta(days=1)
    ledger = Ledger([ConsentRecord("1", "v", "visitor", "online", "granted", AT, AT, valid_to=ends)])
    asked = Recommender.load(bundles(), ledger=ledger, clock=lambda: now[0])
    request = Request(visitor_id="v", online_history=ITEMS[:2])
    assert asked.recommend(request).tier is Tier.ONLINE
    now[0] = ends
    assert asked.recommend(request).tier is Tier.POPULAR


@given(
    st.lists(
        st.builds(
            Event,
            st.text(),
            st.none() | st.datetimes(timezones=st.just(dt.UTC)),
            st.none() | st.text(),
            st.none() | st.floats(allow_nan=False) | st.integers(),
        ),
        max_size=4,
    )
)
def test_events_are_digested_as_what_a_json_encoder_gives(events: list[Event]) -> None:
    moments = [None if event.ts is None else microseconds(event.ts) for event in events]
    plain = [
        [event.item_id, moment, event.event_type, event.quantity]
        for event, moment in zip(events, moments, strict=True)
    ]
    assert recommender_module._json_of(events) == json.dumps(plain, separators=(",", ":"))


def test_a_directory_that_holds_no_bundles_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").touch()
    with pytest.raises(BundleMissing, match=r"it holds none of session, online, .* name the directory that"):
        Recommender.load(tmp_path)
    with pytest.raises(BundleMissing, match="this is one itself; name the directory above it"):
        Recommender.load(bundles() / "crm")
    (tmp_path / "crm").mkdir()
    with pytest.raises(BundleMissing, match=r"no bundle can be used:\n- session: .*\n") as found:
        Recommender.load(tmp_path)
    assert len(str(found.value).splitlines()) == 6
