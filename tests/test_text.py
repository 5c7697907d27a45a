"""The sanitiser: whatever comes in, what goes out is one harmless line."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcheck.text import clean, shape


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=40))
def test_cleaned_text_is_one_printable_encodable_line(text):
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert cleaned.isprintable()
    assert len(cleaned.splitlines()) <= 1
    assert not {unicodedata.category(character) for character in cleaned} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31m",
        "\x9b31m",
        "a\nb",
        "a\rb",
        "\u202eevil",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\x7f",
        "\u00ad",
        "\0",
    ],
)
def test_hostile_characters_are_spelled_out(text):
    assert clean(text).isascii()
    assert "\\" in clean(text)


@pytest.mark.parametrize("text", ["layer1.0.conv2", "[/red]", "schicht.größe", "层.卷积", "a b", ""])
def test_harmless_names_stay_as_they_are(text):
    assert clean(text) == text


def test_shape():
    assert shape((3, 224, 224)) == "3×224×224"
    assert shape(()) == ""
