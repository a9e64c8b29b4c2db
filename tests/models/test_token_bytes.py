"""What tokens stand for: the bytes of a text are those of its tokens, whatever the tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from allrounder.models.token_bytes import TokenBytes
from tests.tiny import SPECIALS, byte_level_tokenizer

BYTE_LEVEL: Tokenizer = byte_level_tokenizer(SPECIALS).backend_tokenizer


def _words_with_byte_tokens() -> Tokenizer:
    """As LLaMA's: words that begin with a mark, and a token for each byte of anything else."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: idx for idx, piece in enumerate(pieces)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken("<image>")])
    return tokenizer


WORDS = _words_with_byte_tokens()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, WORDS], ids=["byte-level", "words"])
@given(text=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="▁")))
def test_the_bytes_of_a_text_are_those_of_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    of = TokenBytes(tokenizer).of
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(map(of, ids)) == text.encode()


def test_an_added_token_is_its_own_text_and_an_unknown_id_is_nothing() -> None:
    (image,) = WORDS.encode("<image>").ids
    assert TokenBytes(WORDS).of(image) == b"<image>"
    assert TokenBytes(BYTE_LEVEL).of(SPECIALS.index("<image>")) == b"<image>"
    assert TokenBytes(WORDS).of(10**6) == b""
