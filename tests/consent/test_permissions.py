"""The vocabulary of permissions, channels, tiers and sources."""

from __future__ import annotations

import pytest

from consentier.consent import CONTACT_CHANNELS, Channel, Permission, Side, Source, Tier, sources_of


@pytest.mark.parametrize(
    ("permission", "level"),
    [
        (Permission.NONE, 1),
        (Permission.ONLINE, 2),
        (Permission.CRM, 2),
        (Permission.ONLINE | Permission.CRM, 3),
    ],
)
def test_the_level_counts_the_permissions(permission: Permission, level: int) -> None:
    assert permission.level == level


@pytest.mark.parametrize(
    ("channel", "side"),
    [
        (Channel.SHOP, Side.ONLINE),
        (Channel.APP, Side.ONLINE),
        (Channel.ADS, Side.ONLINE),
        (Channel.EMAIL, Side.CRM),
        (Channel.PRINT, Side.CRM),
        (Channel.CALL_CENTER, Side.CRM),
        (Channel.PUSH, Side.CRM),
    ],
)
def test_every_channel_belongs_to_one_side(channel: Channel, side: Side) -> None:
    assert channel.side is side


def test_every_channel_of_the_crm_side_is_a_contact() -> None:
    assert {channel for channel in Channel if channel.side is Side.CRM} == CONTACT_CHANNELS


@pytest.mark.parametrize(
    ("tier", "online_side", "crm_side"),
    [
        (Tier.SESSION, {Source.SESSION}, set()),
        (Tier.ONLINE, {Source.SESSION, Source.ONLINE}, {Source.ONLINE}),
        (Tier.CRM, {Source.CRM}, {Source.CRM}),
        (Tier.FUSED, {Source.SESSION, Source.ONLINE, Source.CRM}, {Source.ONLINE, Source.CRM}),
        (Tier.POPULAR, set(), set()),
        (Tier.NONE, set(), set()),
    ],
)
def test_each_tier_reads_its_own_sources(tier: Tier, online_side: set[Source], crm_side: set[Source]) -> None:
    assert sources_of(tier, Side.ONLINE) == online_side
    assert sources_of(tier, Side.CRM) == crm_side
