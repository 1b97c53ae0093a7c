"""Why an operator gives a word that goes into a log: text that can stand there, for whoever reads it later."""

from streams.errors import OperatorError

REASON_CHARACTERS_MAX = 1024


def checked_reason(reason: str, what: str) -> str:
    """The reason without spaces around it; ``what`` says of what it is asked for.

    Raises:
        OperatorError: it cannot stand in the log.
    """
    reason = reason.strip()
    if not reason:
        raise OperatorError(f"--reason is empty: say why {what}, for whoever reads the log later")
    if len(reason) > REASON_CHARACTERS_MAX:
        raise OperatorError(f"--reason has {len(reason):,} characters and may have {REASON_CHARACTERS_MAX:,}")
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise OperatorError("--reason holds bytes that are no text in UTF-8") from None
    return reason
