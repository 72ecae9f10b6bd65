"""CLIP's tokenizer: text to the ids that the text tower reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastfss.errors import expected, expected_kind, import_extra

CONTEXT = 77
START, END = 49406, 49407
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_PIECES = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def tokenize(texts: Sequence[str], *, truncate: bool = False, argument: str = "texts") -> Tensor:
    """The rows of ids of some texts: start, tokens, end, zeros.

    Args:
        texts: any languages; the case does not count.
        truncate: cut what is too long, and make the last id the end's.
        argument: what messages call them.

    Returns:
        int64 (N, 77).

    Raises:
        TypeError: a text that is none.
        ValueError: one that has no UTF-8 form, or more tokens than fit.
        MissingExtraError: open_clip is not installed.

    Examples:
        >>> tokenize(["a photo of a dog"])[0, :7].tolist()
        [49406, 320, 1125, 539, 320, 1929, 49407]
    """
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for number, text in enumerate(texts):
        ids = [START, *encode(text, argument=f"{argument}[{number}]"), END]
        if len(ids) > CONTEXT:
            if not truncate:
                wanted = f"at most {CONTEXT - 2} tokens"
                raise expected(f"{argument}[{number}]", wanted, f"{len(ids) - 2} in {text[:40]!r}")
            ids = [*ids[: CONTEXT - 1], END]
        rows[number, : len(ids)] = torch.tensor(ids)
    return rows


def encode(text: str, *, argument: str = "text") -> list[int]:
    """The ids of a text, without start and end.

    Args:
        text: the text.
        argument: what messages call it.

    Errors are those of `tokenize`.
    """
    if not isinstance(text, str):
        raise expected_kind(argument, "a text", type(text).__name__)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise expected(argument, "text with a UTF-8 form", repr(text)) from error
    ids: list[int] = _tokenizer().encode(text)
    return ids


def decode(ids: Sequence[int]) -> str:
    """The text of ids, as far as the tokens keep it: lower case, a space after each piece."""
    text: str = _tokenizer().decode(ids)
    return text


@cache
def _tokenizer() -> Any:
    """open_clip's tokenizer, with OpenAI's names of the two special tokens."""
    library = import_extra("open_clip.tokenizer", extra="text", purpose="a label as text")
    regex = import_extra("regex", extra="text", purpose="a label as text")
    tokenizer = library.SimpleTokenizer()
    names = "|".join(regex.escape(name) for name in _SPECIAL)
    tokenizer.pat = regex.compile(f"{names}|{_PIECES}", regex.IGNORECASE)
    tokenizer.cache = {name: name for name in _SPECIAL}
    for name, number in _SPECIAL.items():
        del tokenizer.encoder[tokenizer.decoder[number]]
        tokenizer.encoder[name] = number
        tokenizer.decoder[number] = name
    return tokenizer
