"""How an evaluation asks: for each tier the request that has just the permission for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from consentier.consent import Channel, Permission, Tier
from consentier.progress import Advance
from consentier.serving import Answer, Recommender, Request
from consentier.training.evaluate_cases import Case
from consentier.training.evaluate_judge import Lists, World
from consentier.training.evaluation_result import TargetSide

__all__ = ["answers_of", "ask_all", "ask_restricted", "random_lists"]

_LEVEL_3 = Permission.ONLINE | Permission.CRM


def ask_all(
    recommender: Recommender,
    tier: Tier,
    cases: Sequence[Case],
    world: World,
    advance: Advance,
    *,
    side: TargetSide = "crm",
) -> Lists:
    """The lists of one tier, by a request that has just the permission for it.

    The side matters to the popular list, of which each side has its own.
    """
    return world.numbers(
        [answer.items for answer in answers_of(recommender, tier, cases, world, advance, side=side)]
    )


def answers_of(
    recommender: Recommender,
    tier: Tier,
    cases: Sequence[Case],
    world: World,
    advance: Advance,
    *,
    side: TargetSide = "crm",
) -> list[Answer]:
    """The answers to what `ask_all` asks: they say which tier gave them, which may be one that stood in."""
    request = _popular_online if tier is Tier.POPULAR and side == "online" else _REQUESTS[tier]
    found = []
    for case in cases:
        found.append(recommender.recommend(request(case, world.width)))
        advance()
    return found


def ask_restricted(
    recommender: Recommender, tiers: Sequence[Tier], cases: Sequence[Case], world: World, advance: Advance
) -> dict[str, Lists]:
    """The fused model in every slot: the router decides which inputs it sees, and nothing else differs."""
    fused = recommender.scorers[Tier.FUSED]
    one_model = dataclasses.replace(
        recommender, scorers=MappingProxyType({tier: fused for tier in tiers if tier is not Tier.POPULAR})
    )
    return {str(tier): ask_all(one_model, tier, cases, world, advance) for tier in tiers}


def random_lists(cases: Sequence[Case], world: World) -> Lists:
    """Items drawn at random: what chance alone gives."""
    rng = np.random.default_rng(world.settings.seed)
    names = list(world.items)
    return world.numbers(
        [[names[number] for number in rng.permutation(len(names))[: world.width]] for _ in cases]
    )


def _popular_request(_: Case, n: int) -> Request:
    # On the CRM side the list counts orders, which are the target: the harder baseline of the two.
    return Request(channel=Channel.EMAIL, permission=Permission.NONE, n=n)


def _popular_online(_: Case, n: int) -> Request:
    return Request(permission=Permission.NONE, n=n)


def _session_request(case: Case, n: int) -> Request:
    return Request(session=case.session, permission=Permission.NONE, n=n)


def _online_request(case: Case, n: int) -> Request:
    return Request(
        session=case.session,
        online_history=case.device_history,
        permission=Permission.ONLINE,
        n=n,
    )


def _crm_request(case: Case, n: int) -> Request:
    return Request(
        crm_history=case.crm_history,
        attributes=case.attributes,
        permission=Permission.CRM,
        channel=Channel.EMAIL,
        n=n,
    )


def _fused_request(case: Case, n: int) -> Request:
    return Request(
        session=case.session,
        online_history=case.all_history,
        crm_history=case.crm_history,
        attributes=case.attributes,
        permission=_LEVEL_3,
        linked=True,
        n=n,
    )


_REQUESTS: Mapping[Tier, Callable[[Case, int], Request]] = {
    Tier.POPULAR: _popular_request,
    Tier.SESSION: _session_request,
    Tier.ONLINE: _online_request,
    Tier.CRM: _crm_request,
    Tier.FUSED: _fused_request,
}
