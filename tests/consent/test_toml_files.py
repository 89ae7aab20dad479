"""Files of settings that no person wrote: refused in words, in bounded time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consentier.consent.toml_files import read_toml
from consentier.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 5_000, "nested deeper than 32 levels"),
        ("a = " + "{b=" * 5_000, "nested deeper than 32 levels"),
        ("a = " + "[" * 33 + "]" * 33, "nested deeper than 32 levels"),
        (".".join(["a"] * 5_000) + " = 1", "nested deeper than 32 levels"),
        ("[" + ".".join(["a"] * 33) + "]", "nested deeper than 32 levels"),
        ("a = " + "9" * 5_000, "not valid TOML"),
        ("a = 1\na = 2", "not valid TOML"),
        ("a = '\x00'", "not valid TOML"),
        ("\ufeffa = 1", "not valid TOML"),
        ("a = 2026-02-30", "not valid TOML"),
        ("#" * (1 << 20) + "\n", "longer than 1048576 bytes"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"settings: .*{reason}"):
        read_toml(tmp_path / "a.toml", "settings", ConfigError)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="not valid TOML in UTF-8"):
        read_toml(tmp_path / "a.toml", "settings", ConfigError)


def test_settings_may_be_nested_as_far_as_the_limit(tmp_path: Path) -> None:
    text = "[" * 31 + "]" * 31
    (tmp_path / "a.toml").write_text(f"a = {text}", encoding="utf-8")
    assert read_toml(tmp_path / "a.toml", "settings", ConfigError) == {"a": json.loads(text)}
