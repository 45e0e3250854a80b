"""What reaches the terminal: foreign text as text, without control over the terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from jcv2_plugin.console import CleanConsole, message, name, to_json

HOSTILE = "a\x1b[2Jb\x9b31mc\x00d\u202ee\u2066f\rg\x7fh\ud800"


def printed(*values: object, terminal: bool = True, **options: object) -> str:
    file = io.StringIO()
    CleanConsole(file=file, force_terminal=terminal, width=200).print(*values, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("of", [str, Text, lambda text: Text.assemble((text, "bold"))])
def test_no_control_character_reaches_the_terminal(of: object) -> None:
    shown = printed(of(HOSTILE), terminal=False)  # type: ignore[operator]
    assert r"a\x1b[2Jb\x9b31mc\x00d\u202ee\u2066f" in shown
    assert not any(char in shown for char in HOSTILE if not char.isprintable())


def test_styles_of_ours_stay_and_are_in_their_place() -> None:
    passage = Text("\x1b and ferry")
    passage.stylize("bold", 6, 11)
    assert printed(passage) == "\\x1b and \x1b[1mferry\x1b[0m\n"


def test_tables_titles_and_markup() -> None:
    table = Table("column", title="[red]title[/zz]")
    table.add_row(name("[bold]cell[/] \x1b :smile:"))
    shown = printed(table, "[/zz].html", terminal=False)
    for part in ("[red]title[/zz]", r"[bold]cell[/] \x1b :smile:", "[/zz].html"):
        assert part in shown


def test_a_name_is_one_line_of_a_sane_length() -> None:
    assert name("a\n2. \x1b\tb") == r"a\n2. \x1b\tb"
    assert len(name("x" * 10_000)) == 201


def test_a_further_line_of_a_message_does_not_look_like_ours() -> None:
    assert message("The server said: no\nDropped the collection.") == "The server said: no\n    Dropped the collection."


def test_a_message_keeps_its_beginning_and_its_end() -> None:
    shown = message(f"The id {'x' * 10**6!r} comes twice. Remove one.")
    assert len(shown) < 4100
    assert shown.startswith("The id 'xxx")
    assert shown.endswith("xxx' comes twice. Remove one.")


def test_json_is_the_same_and_printable() -> None:
    value = {HOSTILE: [HOSTILE, "Grüße, 你好"]}
    text = to_json(value)
    assert json.loads(text) == value
    assert text.isprintable()
    assert "Grüße, 你好" in text
