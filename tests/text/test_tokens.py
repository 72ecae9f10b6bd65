from __future__ import annotations

import pytest

from fastfss.text import decode, encode, tokenize


def test_the_case_and_extra_space_do_not_count() -> None:
    wanted = [320, 1125, 539, 320, 1929]
    assert encode("  A  Photo of\ta DOG ") == encode("a photo of a dog") == wanted


def test_special_tokens_have_openais_names() -> None:
    assert encode("<|startoftext|> x <|endoftext|>") == [49406, 343, 49407]
    # open_clip's own names are text like any other.
    assert 49406 not in encode("<start_of_text>")
    assert decode(encode("Don't <|endoftext|>")) == "don 't <|endoftext|>"


def test_a_row_is_start_tokens_end_and_zeros() -> None:
    rows = tokenize(["x", ""])
    assert rows.shape == (2, 77)
    assert rows[0, :4].tolist() == [49406, 343, 49407, 0]
    assert rows[1, :3].tolist() == [49406, 49407, 0]


def test_75_tokens_fit_and_76_do_not() -> None:
    assert tokenize(["x " * 75])[0, -1] == 49407
    with pytest.raises(ValueError, match=r"labels\[1\]: expected at most 75 tokens, got 76"):
        tokenize(["x", "x " * 76], argument="labels")
    assert tokenize(["x " * 76], truncate=True)[0, -1] == 49407


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [("\udc80", ValueError, "UTF-8"), (7, TypeError, r"texts\[0\]: expected a text, got int")],
)
def test_what_is_no_text_is_named(text: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tokenize([text])  # type: ignore[list-item]
