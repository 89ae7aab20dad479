"""Tenth law: every answer says what it rests on, and the same inputs give it again, bit for bit.

Who answered and why, under which policy, from which model, as of which state of the ledger, and what was read
of the person: as digests under the shop's own key, so that an auditor who has the inputs can compare, and
nobody else learns anything. An answer that was given without permission has none.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from engines import CATALOGUE, ITEMS, bundles, engine
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Channel, ConsentRecord, Ledger, Link, Permission, Policy, Tier
from consentier.models.bundle import open_bundle
from consentier.serving import Answer, Event, Recommender, Request, recommender

AT = dt.datetime(2026, 3, 1, 12, 30, tzinfo=dt.UTC)
KEY = b"the shop's key"
BOTH = Permission.ONLINE | Permission.CRM
LEVELS = {1: Permission.NONE, 2: Permission.ONLINE, 3: BOTH}


def load(key: bytes = KEY, **options: Any) -> Recommender:
    """The bundles, opened anew."""
    return Recommender.load(bundles(), audit_key=key, clock=lambda: AT, **options)


def text(answer: Answer) -> str:
    """An answer to the last byte."""
    return json.dumps(answer.to_dict(), sort_keys=True)


HISTORY = (
    Event(ITEMS[3], ts=AT - dt.timedelta(days=3), event_type="order", quantity=2),
    Event(ITEMS[5], ts=AT - dt.timedelta(days=1)),
)


def full(**changes: Any) -> Request:
    """A request of the third level."""
    facts: dict[str, Any] = {
        "session": (ITEMS[1],), "online_history": (ITEMS[2],), "crm_history": HISTORY,
        "attributes": {"region": "north", "age": 40}, "permission": BOTH, "linked": True, "at": AT,
    }  # fmt: skip
    return Request(**{**facts, **changes})


def test_a_full_answer_names_all_that_it_rests_on() -> None:
    ledger = Ledger(
        ConsentRecord(permission, "1", kind, permission, "granted", AT, AT)  # type: ignore[arg-type]
        for kind, permission in (("visitor", "online"), ("customer", "crm"), ("customer", "contact:email"))
    )
    ledger.append_links([Link("1", "1", AT)])
    asked = load(ledger=ledger, catalogue=CATALOGUE)
    answer = asked.recommend(full(visitor_id="1", customer_id="1", n=13))
    basis = answer.basis
    assert answer.tier is Tier.FUSED
    assert basis.reason == "both permissions and a lawful link: answered from online and CRM data together"
    assert basis.reasons == ("online: granted", "crm: granted", "both permissions and a lawful link")
    assert (basis.state, basis.side, basis.policy_version) == (
        "both_linked",
        "online",
        Policy.default().version,
    )
    assert basis.bundle_digest == open_bundle(bundles() / "fused").digest
    assert basis.fill_digest == open_bundle(bundles() / "popular").digest
    assert basis.filled == sum(score == 0 for score in answer.scores) > 0
    assert basis.sources == ("crm", "online", "session")
    assert set(basis.input_digests) == {"session", "online", "crm", "attributes"}
    assert basis.ledger_position == 4
    assert basis.contact == ("email",)
    assert basis.at == "2026-03-01T12:30:00+00:00"
    assert json.loads(text(answer)) == json.loads(
        text(asked.recommend(full(visitor_id="1", customer_id="1", n=13)))
    )


@pytest.mark.parametrize(
    ("channel", "permission", "linked", "names"),
    [
        ("shop", Permission.NONE, False, set()),
        ("shop", Permission.CRM, False, set()),
        ("email", Permission.ONLINE, False, set()),
        ("shop", Permission.ONLINE, False, {"session", "online"}),
        ("email", Permission.CRM, False, {"crm", "attributes"}),
        ("email", BOTH, True, {"online", "crm", "attributes"}),
    ],
)
def test_what_was_read_has_a_digest_and_nothing_else_has(
    channel: str, permission: Permission, linked: bool, names: set[str]
) -> None:
    answer = load().recommend(full(channel=channel, permission=permission, linked=linked))
    assert set(answer.basis.input_digests) == names


def test_tiers_that_were_passed_over_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "popular").symlink_to(bundles() / "popular")
    (tmp_path / "session").symlink_to(bundles() / "session")
    answer = Recommender.load(tmp_path).recommend(full(session=("unheard-of",)))
    assert answer.tier is Tier.POPULAR
    assert [reason.split(":")[0] for reason in answer.basis.reasons[-4:]] == [
        "fused",
        "online",
        "crm",
        "session",
    ]
    assert answer.basis.reasons[-1].endswith("the permitted history holds nothing that the model knows")
    assert "popular" in answer.basis.reason


# ---- Replaying ---------------------------------------------------------------------------------------------

_items = st.sampled_from((*ITEMS, "unheard-of"))
_events = st.lists(
    st.builds(Event, _items, ts=st.none() | st.just(AT), event_type=st.sampled_from((None, "cart"))),
    max_size=6,
).map(tuple)
Inputs = dict[str, Any]
inputs: st.SearchStrategy[Inputs] = st.fixed_dictionaries(
    {
        "session": _events,
        "online_history": _events,
        "crm_history": _events,
        "attributes": st.fixed_dictionaries(
            {},
            optional={"region": st.sampled_from(("north", "é", "")), "age": st.sampled_from((1, 1.5, True))},
        ),
    }
)
cases = st.tuples(
    inputs, inputs, st.sampled_from(Channel), st.sampled_from([Permission.ONLINE, Permission.CRM, BOTH])
)

_DIGEST_OF = {
    "session": "session",
    "online": "online_history",
    "crm": "crm_history",
    "attributes": "attributes",
}


def plain(value: Any) -> str:
    """An input to the last letter; the order of attributes means nothing."""
    return json.dumps(value, sort_keys=True, default=repr)


def check_digests_tell_inputs_apart(case: tuple[Inputs, Inputs, Channel, Permission]) -> None:
    """One answer has one digest of an input as another exactly where the inputs were the same."""
    first, second, channel, permission = case
    answers = [
        engine().recommend(Request(**each, channel=channel, permission=permission, linked=True))
        for each in (first, second)
    ]
    digests = [answer.basis.input_digests for answer in answers]
    for name in digests[0].keys() & digests[1].keys():
        same = plain(first[_DIGEST_OF[name]]) == plain(second[_DIGEST_OF[name]])
        assert (digests[0][name] == digests[1][name]) == same, name
    for one in digests:
        assert len(set(one.values())) == len(one), "two inputs share one digest"
    replayed = engine().recommend(Request(**first, channel=channel, permission=permission, linked=True))
    assert text(replayed) == text(answers[0])


@settings(max_examples=150)
@given(cases)
def test_equal_inputs_have_equal_digests_and_others_have_others(
    case: tuple[Inputs, Inputs, Channel, Permission],
) -> None:
    check_digests_tell_inputs_apart(case)


ONE: Inputs = {
    "session": (),
    "online_history": (),
    "crm_history": (Event(ITEMS[0]),),
    "attributes": {"age": 1},
}


def differing(**change: Any) -> tuple[Inputs, Inputs, Channel, Permission]:
    """Two CRM requests with one difference."""
    return ONE, {**ONE, **change}, Channel.EMAIL, Permission.CRM


@breaks(
    Break(
        "the type of an event is not in the digest",
        recommender._event_json,
        "encode_basestring_ascii(event.event_type)",
        "'null'",
        differing(crm_history=(Event(ITEMS[0], event_type="cart"),)),
    ),
    Break(
        "the time of an event is not in the digest",
        recommender._event_json,
        "str(microseconds(event.ts))",
        "'null'",
        differing(crm_history=(Event(ITEMS[0], ts=AT),)),
    ),
    Break(
        "attributes are not in the digest",
        Recommender.input_digests,
        "dict(view.attributes)",
        "sorted(view.attributes)",
        differing(attributes={"age": 1.5}),
    ),
    Break(
        "the digest does not say of what it is",
        recommender.input_text,
        '["{name}",{encoded}]',
        "[{encoded}]",
        ({**ONE, "online_history": ONE["crm_history"]}, ONE, Channel.EMAIL, BOTH),
    ),
    Break(
        "the digest is drawn anew each time",
        Recommender._digest,
        "hmac.digest(self.audit_key,",
        "hmac.digest(secrets.token_bytes(32),",
        differing(),
    ),
)
def test_a_digest_that_accounts_for_less_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_digests_tell_inputs_apart, cases, broken)


@pytest.mark.parametrize("level", LEVELS)
def test_bundles_opened_again_answer_bit_for_bit_the_same(level: int) -> None:
    request = full(permission=LEVELS[level])
    assert text(load().recommend(request)) == text(load().recommend(request))
    assert text(load(catalogue=CATALOGUE).recommend(request)) == text(
        load(catalogue=CATALOGUE).recommend(request)
    )


def test_another_key_changes_the_digests_and_nothing_else() -> None:
    mine, others = load().recommend(full()), load(b"another key").recommend(full())
    assert not set(mine.basis.input_digests.values()) & set(others.basis.input_digests.values())
    plain = [each.to_dict() for each in (mine, others)]
    for each in plain:
        each["basis"].pop("input_digests")
    assert plain[0] == plain[1]


def test_without_a_key_digests_of_two_recommenders_cannot_be_compared() -> None:
    first, second = (Recommender.load(bundles()).recommend(full()) for _ in range(2))
    assert first.basis.input_digests != second.basis.input_digests
    assert repr(Recommender.load(bundles(), audit_key=KEY)).find("the shop") == -1


def test_another_process_gives_the_same_answer_bit_for_bit() -> None:
    script = f"""
import datetime as dt, json
from consentier import Event, Permission, Recommender, Request
at = dt.datetime(2026, 3, 1, 12, 30, tzinfo=dt.UTC)
day = dt.timedelta(days=1)
history = (Event("item-03", at - 3 * day, "order", 2), Event("item-05", at - day))
asked = Recommender.load({str(bundles())!r}, audit_key={KEY!r}, clock=lambda: at)
answer = asked.recommend(Request(session=("item-01",), online_history=("item-02",), crm_history=history,
    attributes={{"region": "north", "age": 40}}, permission=Permission(3), linked=True, at=at))
print(json.dumps(answer.to_dict(), sort_keys=True))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == text(load().recommend(full()))


def test_the_same_instant_in_another_zone_is_the_same_request() -> None:
    elsewhere = AT.astimezone(dt.timezone(dt.timedelta(hours=-7)))
    assert text(load().recommend(full(at=elsewhere))) == text(load().recommend(full()))
