"""The parameters in force, and the records that were refused, as the topic alone tells them."""

from decimal import Decimal

from streams.broker.records import Log
from streams.feeds.marks import last_full_frame
from streams.feeds.parameters import parameter_steps
from streams.margin.parameters import RiskParameters


def read_parameters(log: Log) -> tuple[RiskParameters, dict[str, str]]:
    """Every record that breaks no rule, at the scales in force; and, by key, why the last record there was refused.

    Raises:
        BrokerError: Kafka does not answer.
    """
    parameters = RiskParameters.empty()
    refused: dict[str, str] = {}
    for step in parameter_steps(log):
        parameters, key = step.parameters, step.record.key_shown
        refused.pop(key, None)
        if step.refused is not None:
            refused[key] = f"offset {step.offset}: {step.refused}"
    frame = last_full_frame(log)
    scales = {} if frame is None else frame.scales
    return parameters.with_scales({key: Decimal(scale) for key, scale in scales.items()}), refused
