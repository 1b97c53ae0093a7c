"""The one JSON codec: msgspec decodes and validates, orjson encodes.

Decoding raises :class:`DecodeError` with the field and the reason and never anything else, whatever the bytes are.
Encoding is canonical for a given value (field order of the struct, no spaces), so equal values are equal bytes.
"""

from typing import Any, Generic, TypeVar

import msgspec
import orjson

from schemas.refusal import refusal

T = TypeVar("T")

MESSAGE_BYTES_MAX = 1_000_000
"""Largest record that a consumer of the exchange's topics accepts."""


class DecodeError(ValueError):
    """The bytes are not a valid message of the expected type; the text names the field, its value and the reason."""


class Decoder(Generic[T]):
    """Decodes one message type. Reusable and cheap per call: build it once."""

    def __init__(self, message_type: Any) -> None:
        self._type = message_type
        self._decode = msgspec.json.Decoder(message_type).decode

    def __call__(self, data: bytes | None) -> T:
        """Return the message in ``data``.

        Raises:
            DecodeError: no value, too long, not JSON, not UTF-8, a field missing, of the wrong type or out of range.
        """
        if data is None:
            raise DecodeError("the record has no value")
        if len(data) > MESSAGE_BYTES_MAX:
            raise DecodeError(f"{len(data)} bytes, more than the {MESSAGE_BYTES_MAX} a message may have")
        try:
            return self._decode(data)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError(refusal(str(error), self._type, data)) from None


def encode(message: Any) -> bytes:
    """The JSON bytes of a message struct or of plain JSON values, in field order, without spaces."""
    return orjson.dumps(message, default=msgspec.to_builtins, option=orjson.OPT_SERIALIZE_NUMPY)
