"""What a token stands for: its bytes, of which several may be needed for one character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "▁"


class TokenBytes:
    """Bytes of each token of one tokenizer: byte-level, or words with byte tokens beside them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {
            idx: token.content.encode()
            for idx, token in tokenizer.get_added_tokens_decoder().items()
        }
        decoders = set(_decoder_types(json.loads(tokenizer.to_str())["decoder"]))
        self._byte_of = _byte_level_alphabet() if "ByteLevel" in decoders else None

    def of(self, token_id: int) -> bytes:
        """Empty for an id that the tokenizer does not know."""
        if token_id in self._added:
            return self._added[token_id]
        token: str = self._tokenizer.id_to_token(token_id) or ""
        if self._byte_of is not None:
            return b"".join(self._byte_of.get(char) or char.encode() for char in token)
        if found := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(found[1])
        return token.replace(_WORD_START, " ").encode()


def _decoder_types(decoder: Any) -> Iterator[str]:
    if decoder is None:
        return
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _decoder_types(part)


def _byte_level_alphabet() -> dict[str, bytes]:
    """Byte-level tokenizers write printable bytes as themselves, the others from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    written = {chr(byte): bytes([byte]) for byte in shown}
    return written | {chr(0x100 + idx): bytes([byte]) for idx, byte in enumerate(hidden)}
