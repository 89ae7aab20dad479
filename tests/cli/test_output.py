"""What the command line prints: texts of others are shown, and never obeyed."""

from __future__ import annotations

import pytest

from consentier.cli import output

OBEYED = ["\x1b]0;title\x07", "\x1b[2J", "\r", "\x08", "\x9b31m", "\u202e", "\u2066", "\x7f"]


@pytest.mark.parametrize("text", OBEYED)
@pytest.mark.parametrize("way", ["table", "say", "error"])
def test_no_control_character_reaches_a_terminal(
    text: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if way == "table":
        output.print_table(["item"], [[f"a{text}b"]])
    elif way == "say":
        output.say(f"a{text}b")
    else:
        output._error(f"a{text}b")
    shown = "".join(capsys.readouterr())
    assert shown.replace("\n", "").isprintable()
    assert "a" in shown
    assert "b" in shown


def test_half_a_surrogate_pair_is_shown_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a\ud800b")
    assert capsys.readouterr().out == "a\\ud800b\n"


def test_mark_up_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["item"], [["[bold]x[/bold] [link=http://example.org]y[/link]"]])
    assert "[bold]x[/bold] [link=http://example.org]y[/link]" in capsys.readouterr().out


def test_a_control_character_is_shown_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a\x1bb\u202ec")
    assert capsys.readouterr().out == "a\\x1bb\\u202ec\n"
