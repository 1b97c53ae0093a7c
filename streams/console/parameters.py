"""The parameters in force, and the records that were refused, as the topic alone tells them."""

from decimal import Decimal

from schemas.codec import DecodeError
from schemas.topics import PARAMETERS
from streams.broker.marks import last_full_frame
from streams.broker.reader import LogReader
from streams.errors import InputError
from streams.margin.parameters import RiskParameters


def read_parameters(reader: LogReader) -> tuple[RiskParameters, dict[str, str]]:
    """Every record that breaks no rule, at the scales in force; and, by key, why the last record there was refused.

    Raises:
        BrokerError: Kafka does not answer.
    """
    rules = RiskParameters.empty()
    refused: dict[str, str] = {}
    for message in reader.read_range(PARAMETERS, 0, 0):
        key = (message.key() or b"").decode("utf-8", "replace")
        refused.pop(key, None)
        try:
            rules = rules.with_encoded(message.key(), message.value())
        except (DecodeError, InputError) as error:
            refused[key] = f"offset {message.offset()}: {error}"
    frame = last_full_frame(reader)
    scales = {} if frame is None else frame.scales
    return rules.with_scales({key: Decimal(scale) for key, scale in scales.items()}), refused
