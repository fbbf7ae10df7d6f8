"""When a task is not delivered again: the limit of a consumer, and what it does with what has come to it."""

from __future__ import annotations

from . import checks
from .calls import GivingUp
from .codec import Serialiser, encode


def giving_up(
    serialiser: Serialiser, max_attempts: int | None, dead_letter: bool, result_ttl: float, known: GivingUp | None
) -> GivingUp | None:
    """Check the settings of a queue, and say what follows from them; ``None`` is no limit.

    :param known: what followed the last time, which is kept if it still does
    :raises TorrelqueValueError: a setting is out of range
    :raises TorrelqueTypeError: a setting has the wrong type
    """
    keeps = checks.flag("dead_letter", dead_letter)
    if max_attempts is None:
        return None
    attempts = checks.max_attempts(max_attempts)
    kept = None if keeps else checks.positive_seconds("result_ttl", result_ttl)
    if known is not None and (known.attempts, known.keep) == (attempts, kept):
        return known
    reason = encode(serialiser, f"Not delivered again: max_attempts is {attempts}", "max_attempts")
    return GivingUp(attempts, kept, reason)
