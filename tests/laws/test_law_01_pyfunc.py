"""Laws 1, 4, 5 and 10 over the packaged model: each row under its own permission, whatever the others hold.

The model is written, loaded by MLflow without any pickle, and asked as a shop's batch would ask it. What may
be read stands in the table below; the engine's own policy is not asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from engines import ITEMS, bundles
from hypothesis import given, settings
from hypothesis import strategies as st
from packaged import loaded, predicted

from consentier.consent import Channel, Policy
from consentier.models.bundle import open_bundle
from consentier.serving import pyfunc

Row = dict[str, Any]

MARK = "5ab1c0de"
"""Stands in every history."""

WORDS = ("none", "online", "crm", "both")
DOUBTFUL = (None, "", "BOTH", "all", "both ", 3, True, float("nan"), ["both"])
"""What is no permission."""

HISTORIES = ("session", "online_history", "crm_history", "attributes")

# What may be read, by permission and side; "both" is that of persons who are linked.
READS: Mapping[tuple[str, str], frozenset[str]] = {
    ("none", "online"): frozenset({"session"}),
    ("none", "crm"): frozenset(),
    ("online", "online"): frozenset({"session", "online_history"}),
    ("online", "crm"): frozenset(),
    ("crm", "online"): frozenset({"session"}),
    ("crm", "crm"): frozenset({"crm_history", "attributes"}),
    ("both", "online"): frozenset(HISTORIES),
    ("both", "crm"): frozenset({"online_history", "crm_history", "attributes"}),
    ("apart", "online"): frozenset({"session", "online_history"}),
    ("apart", "crm"): frozenset({"crm_history", "attributes"}),
}


def readable(row: Row) -> frozenset[str]:
    """The columns of the person that this row's permission covers."""
    said = row["permission"]
    permitted = said if isinstance(said, str) and said in WORDS else "none"
    if permitted == "both" and row.get("linked") is not True:
        permitted = "apart"
    return READS[permitted, "online" if row["channel"] in ("shop", "app", "ads") else "crm"]


# ---- Rows --------------------------------------------------------------------------------------------------

_items = st.sampled_from(ITEMS) | st.just(MARK)
_events = st.fixed_dictionaries(
    {"item_id": _items},
    optional={
        "ts": st.sampled_from(["2026-02-01T10:00:00+00:00", "2026-01-01T00:00:00Z"]),
        "event_type": st.sampled_from(["view", "cart", None]),
        "quantity": st.sampled_from([1, 2.5, None]),
    },
)
good_histories = st.none() | st.lists(_items | _events, max_size=4).map(json.dumps)
bad_histories = st.sampled_from(
    [
        MARK, "[", "{}", "7", f'"{MARK}"', '[{"item": "x"}]', '[{"item_id": 5}]', "[NaN]", "[" * 5_000,
        '[{"item_id": "x", "ts": "2026-01-01T00:00:00"}]', '[{"item_id": "x", "ts": "yesterday"}]',
        '[{"item_id": "x", "ts": 5}]', '[{"item_id": "x", "more": 1}]', 5, 2.5, True, [MARK], b"[]",
    ]
)  # fmt: skip
good_attributes = st.none() | st.fixed_dictionaries(
    {}, optional={"region": st.sampled_from(["north", "east", MARK]), "age": st.integers(0, 99)}
).map(json.dumps)
bad_attributes = st.sampled_from(["[]", "{", '{"age": [1]}', MARK, 5])


def rows(*, bad: bool = True) -> st.SearchStrategy[Row]:
    """Rows; some of whose values are of no use, if they may be."""
    histories = good_histories | bad_histories if bad else good_histories
    return st.fixed_dictionaries(
        {
            "permission": st.sampled_from([*WORDS, *DOUBTFUL] if bad else WORDS),
            "channel": st.sampled_from([str(channel) for channel in Channel]),
            "linked": st.sampled_from([True, False, None, "yes", 1] if bad else [True, False]),
            "session": histories,
            "online_history": histories,
            "crm_history": histories,
            "attributes": good_attributes | bad_attributes if bad else good_attributes,
            "n": st.sampled_from([None, 1, 3, 5.0]),
        }
    )


# ---- First law ---------------------------------------------------------------------------------------------


def check_unreadable_columns_change_nothing(pair: tuple[Row, Row]) -> None:
    """The answer stays as it is when all that may not be read is another person's."""
    row, other = pair
    read = readable(row)
    replaced = {**row, **{name: other[name] for name in HISTORIES if name not in read}}
    given_, again = predicted([row, replaced])
    assert given_ == again


pairs = st.tuples(rows(), rows())


@given(pairs)
@settings(max_examples=150)
def test_what_the_permission_does_not_cover_changes_nothing(pair: tuple[Row, Row]) -> None:
    check_unreadable_columns_change_nothing(pair)


@breaks(
    Break(
        "every row has both permissions",
        pyfunc._asked,
        '_permission(row.get("permission"))',
        'PERMISSIONS["both"]',
    ),
    Break(
        "the CRM history is parsed before anybody asks",
        pyfunc._asked,
        "    channel = _channel(",
        '    _history(row, "crm_history")\n    channel = _channel(',
    ),
    Break(
        "the session is parsed for an e-mail",
        pyfunc._asked,
        "if channel.side is Side.ONLINE else ()",
        "if channel else ()",
    ),
    Break(
        "an unknown permission is the widest",
        pyfunc._permission,
        "PERMISSIONS.get(value) if isinstance(value, str) else None",
        'PERMISSIONS.get(str(value), PERMISSIONS["both"])',
    ),
    Break(
        "whatever is there links",
        pyfunc._is_true,
        "isinstance(value, bool | np.bool_) and bool(value)",
        "value is not None",
    ),
)
def test_the_check_notices(broken: Break) -> None:
    assert_breaks(check_unreadable_columns_change_nothing, pairs, broken)


# ---- Fourth law --------------------------------------------------------------------------------------------


def check_doubt_denies(batch: list[Row]) -> None:
    """A doubtful permission is none; a row is answered as if it were alone, and never raises the batch."""
    sure = [
        {
            **row,
            "permission": row["permission"] if row["permission"] in WORDS else "none",
            "linked": row["linked"] is True,
        }
        for row in batch
    ]
    together = predicted(batch)
    for answer, certain in zip(together, predicted(sure), strict=True):
        for name in ("items", "scores", "tier", "bundle_digest"):
            assert answer[name] == certain[name]
    assert together == [predicted([row])[0] for row in batch]


batches = st.lists(rows(), min_size=1, max_size=4)


@given(batches)
@settings(max_examples=100)
def test_doubt_denies_and_no_row_fails_another(batch: list[Row]) -> None:
    check_doubt_denies(batch)


@breaks(
    Break(
        "an unknown permission is the widest",
        pyfunc._permission,
        "PERMISSIONS.get(value) if isinstance(value, str) else None",
        'PERMISSIONS.get(str(value), PERMISSIONS["both"])',
    ),
    Break("a bad session ends the batch", pyfunc._history, "raise _RowError(", "raise ValueError("),
)
def test_the_check_of_doubt_notices(broken: Break) -> None:
    assert_breaks(check_doubt_denies, batches, broken)


@pytest.mark.parametrize("permission", DOUBTFUL)
def test_what_is_no_permission_is_none(permission: object) -> None:
    row = {"permission": permission, "channel": "shop", "linked": True, "session": json.dumps(ITEMS[:1])}
    (answer,) = predicted([{**row, "online_history": "[", "crm_history": "["}])
    assert answer["tier"] == "session"
    assert answer["reason"] == "no permission: answered from the running session"


def test_a_bad_history_lowers_the_tier_and_is_told_without_being_quoted() -> None:
    row = {"permission": "both", "channel": "shop", "linked": True, "session": json.dumps(ITEMS[:1]), "n": 2}
    (answer,) = predicted([{**row, "online_history": f'["{MARK}', "crm_history": json.dumps(ITEMS[:2])}])
    assert answer["tier"] == "crm"
    basis = json.loads(answer["basis"])
    assert basis["sources"] == ["crm"]
    assert "fused: online profiles: failed with JSONDecodeError" in basis["reasons"]
    assert MARK not in answer["basis"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"channel": "radio"}, "channel is none of"),
        ({"channel": None}, "channel is none of"),
        ({"channel": 7}, "channel is none of"),
        ({"session": f'["{MARK}'}, "session is no history in JSON: JSONDecodeError"),
        ({"session": [MARK]}, "session is no history in JSON: TypeError"),
        ({"n": 0}, "n is no whole number from 1 to 1000"),
        ({"n": 1001}, "n is no whole number"),
        ({"n": 2.5}, "n is no whole number"),
        ({"n": True}, "n is no whole number"),
        ({"n": "5"}, "n is no whole number"),
        ({"n": float("inf")}, "n is no whole number"),
    ],
)
def test_a_row_that_is_no_question_has_no_items_and_says_why(fault: Row, reason: str) -> None:
    good = {"permission": "none", "channel": "shop", "session": json.dumps(ITEMS[:1]), "n": 3}
    before, bad, after = predicted([good, {**good, **fault}, good])
    assert (bad["items"], bad["scores"], bad["tier"], bad["bundle_digest"]) == ([], [], "none", "")
    assert bad["reason"].startswith(f"the row was not answered: {reason}")
    assert MARK not in bad["reason"]
    assert before == after
    assert len(before["items"]) == 3


# ---- Fifth law ---------------------------------------------------------------------------------------------

_SOURCES = {"session": "session", "online_history": "online", "crm_history": "crm", "attributes": "crm"}


def sources(row: Row, permission: str) -> frozenset[str]:
    (answer,) = predicted([{**row, "permission": permission}])
    return frozenset(json.loads(answer["basis"])["sources"])


def check_less_permission_never_reads_more(row: Row) -> None:
    """What is read lies within what the permission covers, and within what any wider one reads."""
    read = {word: sources(row, word) for word in WORDS}
    for word in WORDS:
        assert read[word] <= {_SOURCES[name] for name in readable({**row, "permission": word})}
    # Either of two permissions may be the one that an answer under both rests on.
    for word in ("online", "crm"):
        assert read["none"] <= read[word] <= read["both"]


# Whole histories, so that the best tier of each permission has something to say.
whole = st.builds(
    lambda row, items: {**row, **dict.fromkeys(HISTORIES[:3], json.dumps(items))},
    rows(bad=False),
    st.lists(st.sampled_from(ITEMS[:12]), min_size=3, max_size=5, unique=True),
).map(lambda row: {**row, "linked": True})


@given(whole)
@settings(max_examples=50)
def test_less_permission_never_reads_more(row: Row) -> None:
    check_less_permission_never_reads_more(row)


@breaks(
    Break(
        "without CRM permission the CRM data are read",
        pyfunc._permission,
        "PERMISSIONS.get(value) if",
        'PERMISSIONS.get({"online": "crm", "crm": "online"}.get(value, value)) if',
    ),
)
def test_the_check_of_less_notices(broken: Break) -> None:
    assert_breaks(check_less_permission_never_reads_more, whole, broken, examples=100)


# ---- Tenth law ---------------------------------------------------------------------------------------------


def check_accountable(row: Row) -> None:
    """Tier, reason, policy, bundle; without permission nothing to recognise anybody by."""
    (answer,) = predicted([row])
    basis = json.loads(answer["basis"])
    if answer["tier"] == "none":
        assert answer["items"] == []
        return
    assert answer["reason"] == basis["reason"]
    assert basis["policy_version"] == Policy.default().version
    assert answer["bundle_digest"] == open_bundle(bundles() / answer["tier"]).digest
    if not readable(row) - {"session"}:
        assert basis["input_digests"] == {}
        assert MARK not in str(answer)


@given(rows())
@settings(max_examples=100)
def test_every_answer_is_accountable(row: Row) -> None:
    check_accountable(row)


@breaks(
    Break(
        "the reason quotes the row",
        pyfunc._output,
        "answer.basis.reason,",
        f"answer.basis.reason + '{MARK}',",
    ),
    Break(
        "answers name no bundle",
        pyfunc._output,
        'answer.basis.bundle_digest or answer.basis.fill_digest or ""',
        '""',
    ),
)
def test_the_check_of_accounts_notices(broken: Break) -> None:
    assert_breaks(check_accountable, rows(), broken)


def test_the_same_rows_give_the_same_bytes_from_a_model_that_is_loaded_anew() -> None:
    import pandas as pd

    row = {
        "permission": "both", "channel": "shop", "linked": True, "session": json.dumps(ITEMS[:1]),
        "online_history": json.dumps(ITEMS[1:3]), "crm_history": json.dumps(ITEMS[3:5]),
        "attributes": '{"region": "north"}', "n": 4,
    }  # fmt: skip
    (first,) = predicted([row])
    (second,) = loaded().predict(pd.DataFrame([row])).to_dict("records")
    assert first == second
    assert first["tier"] == "fused"
    assert set(json.loads(first["basis"])["input_digests"]) == {"session", "online", "crm", "attributes"}
