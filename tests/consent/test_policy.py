"""The routing policy: the default matrix, the loader and its messages."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from consentier.consent import Channel, Permission, Policy, Resolution, Side, State, Switches, Tier
from consentier.errors import PolicyError

NOTHING = Resolution()
ONLINE = Resolution(online=True)
CRM = Resolution(crm=True)
UNLINKED = Resolution(online=True, crm=True)
LINKED = Resolution(online=True, crm=True, linked=True)
OBJECTED = Resolution(online=True, crm=True, linked=True, objected=True)
MINOR = Resolution(online=True, crm=True, linked=True, minor=True)


def document() -> dict[str, Any]:
    """A lawful policy, as a TOML file would hold it; changed at will."""
    matrix = {
        "none": {"online": ["session", "popular"], "crm": ["popular"]},
        "online": {"online": ["online", "session"], "crm": []},
        "crm": {"online": ["session"], "crm": ["crm"]},
        "both_linked": {"online": ["fused", "session"], "crm": ["fused", "crm"]},
        "both_unlinked": {"online": ["online", "session"], "crm": ["crm"]},
        "objected": {"online": ["session"], "crm": []},
    }
    return {"version": "shop-7", "matrix": copy.deepcopy(matrix)}


@pytest.mark.parametrize(
    ("resolution", "online_side", "crm_side"),
    [
        (NOTHING, Tier.SESSION, Tier.POPULAR),
        (ONLINE, Tier.ONLINE, Tier.POPULAR),
        (CRM, Tier.SESSION, Tier.CRM),
        (LINKED, Tier.FUSED, Tier.FUSED),
        (UNLINKED, Tier.ONLINE, Tier.CRM),
        (OBJECTED, Tier.SESSION, None),
        (MINOR, Tier.SESSION, None),
    ],
)
def test_the_default_matrix_is_the_documented_one(
    resolution: Resolution, online_side: Tier, crm_side: Tier | None
) -> None:
    policy = Policy.default()
    for channel in Channel:
        tiers = policy.route(resolution, channel, vouched=True).tiers
        expected = online_side if channel.side is Side.ONLINE else crm_side
        assert (tiers[0] if tiers else None) is expected


def test_the_default_switches_are_the_strict_ones() -> None:
    assert Policy.default().switches == Switches()
    assert Switches().shared_device_login


@pytest.mark.parametrize(
    ("switches", "resolution", "channel", "state"),
    [
        (Switches(), LINKED, Channel.SHOP, State.BOTH_UNLINKED),
        (Switches(), LINKED, Channel.EMAIL, State.BOTH_LINKED),
        (Switches(shared_device_login=False), LINKED, Channel.SHOP, State.BOTH_LINKED),
        (Switches(fusion_purpose=True), LINKED, Channel.EMAIL, State.BOTH_UNLINKED),
        (Switches(ads_purpose=True), ONLINE, Channel.ADS, State.NONE),
        (Switches(ads_purpose=True), ONLINE, Channel.SHOP, State.ONLINE),
    ],
)
def test_switches_choose_the_state(
    switches: Switches, resolution: Resolution, channel: Channel, state: State
) -> None:
    route = Policy("v", Policy.default().matrix, switches).route(resolution, channel)
    assert route.state is state
    assert route.side is channel.side
    assert all(route.reasons)


def test_crm_data_on_the_site_come_with_the_switch_only() -> None:
    strict = Policy.default()
    open_ = Policy("v", strict.matrix, Switches(crm_on_site=True))
    assert Tier.CRM not in strict.route(CRM, Channel.SHOP).tiers
    assert open_.route(CRM, Channel.SHOP).tiers == (Tier.CRM, Tier.SESSION, Tier.POPULAR)
    assert open_.route(UNLINKED, Channel.SHOP).tiers == (
        Tier.ONLINE,
        Tier.CRM,
        Tier.SESSION,
        Tier.POPULAR,
    )


def test_a_lawful_document_loads_and_keeps_the_strict_defaults() -> None:
    policy = Policy.from_mapping({**document(), "switches": {"ads_purpose": True}})
    assert policy.version == "shop-7"
    assert policy.switches == Switches(ads_purpose=True)
    assert policy.tiers(State.BOTH_LINKED, Side.CRM) == (Tier.FUSED, Tier.CRM)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("verison",), "1", "unknown key 'verison'; did you mean 'version'"),
        (("zzz",), "1", "unknown key 'zzz'; known are version, switches, matrix"),
        (("version",), "", "version must be a non-empty string"),
        (("version",), 3, "version must be a string, not 3"),
        (("switches",), {"crm_onsite": True}, "unknown key 'crm_onsite'; did you mean 'crm_on_site'"),
        (("switches",), {"crm_on_site": "yes"}, "crm_on_site must be true or false, not 'yes'"),
        (("switches",), True, "switches must be a table, not True"),
        (("matrix",), ["none"], "matrix must be a table"),
        (("matrix", "both_link"), {}, "matrix: unknown key 'both_link'; did you mean 'both_linked'"),
        (("matrix", "none", "crms"), [], r"matrix.none: unknown key 'crms'; did you mean 'crm'"),
        (
            ("matrix", "none", "online"),
            "session",
            "matrix.none.online must be a list of tiers, not 'session'",
        ),
        (("matrix", "none", "online"), ["sesion"], "no tier 'sesion'; did you mean 'session'"),
        (("matrix", "none", "online"), ["none"], "there is no tier 'none'"),
        (("matrix", "none", "online"), [["session"]], "there is no tier"),
        (("matrix", "none", "crm"), ["popular", "popular"], "matrix.none.crm names a tier twice"),
        (
            ("matrix", "crm", "online"),
            ["crm"],
            "matrix.crm.online names 'crm', but in that state only popular",
        ),
        (("matrix", "objected", "crm"), ["popular"], "only no tier may answer there"),
        (("matrix", "both_linked", "online"), ["session"], "taking a permission away would widen"),
    ],
)
def test_a_faulty_document_is_refused_with_place_and_remedy(
    path: tuple[str, ...], value: object, message: str
) -> None:
    faulty = document()
    place: dict[str, Any] = faulty
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(PolicyError, match=message) as refused:
        Policy.from_mapping(faulty, origin="policy shop.toml")
    assert str(refused.value).startswith("policy shop.toml")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("version",), "version must be a non-empty string"),
        (("matrix",), r"the table \[matrix\] is missing"),
        (("matrix", "crm"), "matrix.crm.online is missing"),
        (("matrix", "crm", "crm"), "matrix.crm.crm is missing: every state needs both sides"),
    ],
)
def test_an_incomplete_document_is_refused(path: tuple[str, ...], message: str) -> None:
    incomplete = document()
    place: dict[str, Any] = incomplete
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    with pytest.raises(PolicyError, match=message):
        Policy.from_mapping(incomplete)


def test_load_reads_toml_and_names_the_file_in_every_fault(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    with pytest.raises(PolicyError, match=r"policy\.toml: cannot be read: No such file"):
        Policy.load(file)
    file.write_bytes(b"version = \xff")
    with pytest.raises(PolicyError, match=r"policy\.toml: is not valid TOML in UTF-8"):
        Policy.load(file)
    file.write_text("version = ", "utf-8")
    with pytest.raises(PolicyError, match=r"policy\.toml: is not valid TOML"):
        Policy.load(file)
    rows = [
        f"[matrix.{state}]\nonline = {cells['online']}\ncrm = {cells['crm']}"
        for state, cells in document()["matrix"].items()
    ]
    file.write_text("\n".join(['version = "shop-7"', *rows]), "utf-8")
    assert Policy.load(file) == Policy.from_mapping(document())


def test_a_declared_permission_links_only_with_both() -> None:
    both = Permission.ONLINE | Permission.CRM
    assert Resolution.declared(both, linked=True).linked
    assert not Resolution.declared(both).linked
    assert not Resolution.declared(Permission.CRM, linked=True).linked
    assert Resolution.declared(Permission.CRM, linked=True).permission is Permission.CRM
