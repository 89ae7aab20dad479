"""Bundles that earlier releases wrote: they open, with their digests, and answer as they did.

`format_1/` holds one bundle of each tier as the first release wrote it, and `answers.json` what they answered
then. These files are never written again: a change that cannot read them is a new version of the format, and
"later releases keep reading version 1" (docs/bundle-format.md).
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from consentier.consent import Channel, Permission
from consentier.models.bundle import FORMAT_VERSION, open_bundle
from consentier.serving import Event, Recommender, Request

FORMAT_1 = Path(__file__).with_name("format_1")
DIGESTS = {
    "session": "sha256:b68d08888f0bcaea7d5b3353c43e2d98b6e544d52aafa6f87aa79b899dd23ec1",
    "online": "sha256:06f9d3195f71ac79ca6183f40e9d3ff95ac9da19cf673c91c9c8e4733979ae2e",
    "crm": "sha256:9c46116126e19c2e190d283abcad8075f3d23c8ecaff4eb58fc16cf1566fded8",
    "fused": "sha256:91ce615b7ff4ce88f5d48270d108f2f726604825cdd0b558bc520ce82c4bfb09",
    "popular": "sha256:63e0053b4a7f2f2dff8b51597f69e642fd08aa7cab2eeba5d80a57796e61192c",
}
AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def asked(permission: Permission, channel: Channel, *, linked: bool) -> Request:
    return Request(
        session=["apple", "fig"],
        online_history=[
            Event("bread", AT - dt.timedelta(days=2), "cart"),
            Event("date", AT - dt.timedelta(days=1)),
        ],
        crm_history=[
            Event("cheese", AT - dt.timedelta(days=9), "order"),
            Event("ünïcode", AT - dt.timedelta(days=3)),
        ],
        attributes={"region": "north", "age": 40.0},
        permission=permission,
        channel=channel,
        linked=linked,
        at=AT,
        n=4,
    )


REQUESTS = {
    "nobody": asked(Permission.NONE, Channel.SHOP, linked=False),
    "online": asked(Permission.ONLINE, Channel.SHOP, linked=False),
    "crm": asked(Permission.CRM, Channel.EMAIL, linked=False),
    "both": asked(Permission.ONLINE | Permission.CRM, Channel.SHOP, linked=True),
}


def answered(recommender: Recommender) -> dict[str, Any]:
    found = {name: recommender.recommend(request) for name, request in REQUESTS.items()}
    return {
        name: {"tier": str(answer.tier), "items": list(answer.items), "scores": list(answer.scores)}
        for name, answer in found.items()
    }


@pytest.mark.parametrize("tier", DIGESTS)
def test_a_bundle_of_the_first_format_opens(tier: str) -> None:
    manifest = open_bundle(FORMAT_1 / tier, expected_digest=DIGESTS[tier]).manifest
    assert manifest.tier == tier
    assert manifest.format_version == 1 <= FORMAT_VERSION
    assert manifest.item_count == 7


@pytest.mark.parametrize("compiled", [True, False])
def test_they_answer_as_they_did(compiled: bool) -> None:
    then = json.loads((FORMAT_1 / "answers.json").read_text("utf-8"))
    assert answered(Recommender.load(FORMAT_1, compiled=compiled)) == then
    assert [each["tier"] for each in then.values()] == ["session", "online", "crm", "fused"]
