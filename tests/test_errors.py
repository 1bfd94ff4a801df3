"""Messages stay short, on one line and harmless to a terminal."""

import pytest

from seediff_jax.errors import UserError, listed, shown


def test_user_errors_are_value_errors():
    with pytest.raises(ValueError, match="^expected a folder$"):
        raise UserError("expected a folder")


def test_long_lists_are_cut_and_say_how_many_more_there_are():
    assert listed(["a", "b"]) == "a, b"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_long_text_is_cut_and_says_how_long_it_was():
    assert shown("x" * 10, most=10) == "x" * 10
    assert shown("x" * 11, most=10) == "xxxxxxxxxx... (11 characters)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("two\nlines", r"two\nlines"),
        ("lone \ud83d", r"lone \ud83d"),
        ("r\u0085\u2028s", r"r\x85\u2028s"),
        ("día 日本", "día 日本"),
    ],
)
def test_characters_that_a_terminal_would_obey_are_escaped(text, expected):
    assert shown(text) == expected
