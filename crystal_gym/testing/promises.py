"""How a promise is held against what was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["BrokenPromise", "Promises", "shortened"]


class BrokenPromise(AssertionError):
    """An object does not do what crystal_gym relies on.

    All but the name are attributes too.

    Args:
        who: Name of the object, for the message.
        promise: What every object of its kind has to keep.
        seen: What this one did.
        advice: What to do next.
    """

    def __init__(self, who: str, promise: str, seen: str, advice: str) -> None:
        self.promise, self.seen, self.advice = promise, seen, advice
        super().__init__(f"{who} breaks a promise: {promise}. Seen: {seen}. {advice}.")


class Promises:
    """What one object is held to.

    Args:
        who: Its name in messages.
    """

    def __init__(self, who: str) -> None:
        self.who = who

    def break_(self, promise: str, seen: str, advice: str) -> NoReturn:
        """Raise BrokenPromise."""
        raise BrokenPromise(self.who, promise, seen, advice)

    def require(self, kept: bool, promise: str, seen: Any, advice: str) -> None:
        """Raise BrokenPromise unless a promise is kept.

        Args:
            kept: Whether it is.
            promise: A sentence without its full stop.
            seen: What was seen; its repr is shown unless it is a string.
            advice: What to do next, a sentence without its full stop.
        """
        if not kept:
            self.break_(promise, seen if isinstance(seen, str) else shortened(seen), advice)

    def call(self, function: Callable[..., Any], *args: Any, promise: str, advice: str) -> Any:
        """Return what a function returns; what it raises breaks a promise."""
        try:
            return function(*args)
        except Exception as error:
            seen = f"{type(error).__name__}: {shortened(str(error))}"
            raise BrokenPromise(self.who, promise, seen, advice) from error


def shortened(value: Any, length: int = 300) -> str:
    """Return the repr of a value (a string as it is), cut where it grows long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
