"""Keyed digests: matched by who holds the key, guessed by nobody, and by nobody after the key is gone."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent.keyring import Keyring
from consentier.errors import AuditError

DAY = dt.timedelta(days=1)


OPEN = (
    "import sys; from consentier.consent.keyring import Keyring; print(Keyring.open(sys.argv[1]).current_id)"
)


@given(st.text(), st.text(), st.text(), st.text())
def test_equal_values_of_one_domain_and_only_they_have_equal_digests(
    domain: str, value: str, other_domain: str, other_value: str
) -> None:
    keyring = Keyring.ephemeral()
    same = (domain, value) == (other_domain, other_value)
    assert (keyring.digest(domain, value) == keyring.digest(other_domain, other_value)) == same


def test_two_keyrings_name_one_value_differently() -> None:
    assert Keyring.ephemeral().digest("d", "v")[9:] != Keyring.ephemeral().digest("d", "v")[9:]


def test_a_file_keeps_its_keys_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "private" / "keys.json"
    made = Keyring.open(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Keyring.open(path).digest("d", "v") == made.digest("d", "v")
    assert [child.name for child in path.parent.iterdir()] == ["keys.json"]


def test_several_processes_make_one_keyring(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(tmp_path / "keys.json")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = [process.communicate(timeout=60)[0] for process in started]
    assert len(set(ids)) == 1


def test_after_a_rotation_old_digests_are_found_until_the_key_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keyring = Keyring.open(path)
    old_id, old = keyring.current_id, keyring.digest("subject", "c1")
    rotated = keyring.newest_at + 10 * DAY
    new_id = keyring.rotate(rotated)
    for held in (keyring, Keyring.open(path)):
        assert held.current_id == new_id
        assert held.digest("subject", "c1") != old
        assert set(held.digests("subject", "c1")) == {old, held.digest("subject", "c1")}
        assert held.digest_with(old_id, "subject", "c1") == old
    assert keyring.prune(rotated) == []
    assert keyring.prune(rotated + DAY) == [old_id]
    for held in (keyring, Keyring.open(path)):
        assert held.digest_with(old_id, "subject", "c1") is None
        assert old not in held.digests("subject", "c1")
    assert old_id not in path.read_text()


def test_the_newest_key_is_never_thrown_away() -> None:
    keyring = Keyring.ephemeral()
    assert keyring.prune(keyring.newest_at + 10_000 * DAY) == []
    assert keyring.ids == (keyring.current_id,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"format": 1, "keys": []}',
        '{"format": 1, "keys": [{"id": "a", "key": "00", "created_at": "2026-01-01T00:00:00+00:00"}]}',
        '{"format": 1, "keys": [{"id": "a", "key": "zz", "created_at": "2026-01-01T00:00:00+00:00"}]}',
        json.dumps(
            {"format": 1, "keys": [{"id": "a", "key": "00" * 32, "created_at": "2026-01-01T00:00:00"}]}
        ),
        json.dumps({"format": 2, "keys": []}),
        "[" * 100_000,
    ],
)
def test_what_is_no_keyring_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(AuditError, match="keyring"):
        Keyring.open(path)


def test_a_missing_keyring_is_made_only_if_asked(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="there is none"):
        Keyring.open(tmp_path / "keys.json", create=False)
    assert not list(tmp_path.iterdir())


def test_a_keyring_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    Keyring.open(path)
    path.chmod(0o644)
    with pytest.raises(AuditError, match="others may read it"):
        Keyring.open(path)


def test_no_key_is_shown(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path / "keys.json")
    (entry,) = json.loads((tmp_path / "keys.json").read_text())["keys"]
    assert entry["key"] not in repr(keyring)
    assert repr(bytes.fromhex(entry["key"])) not in repr(keyring)
