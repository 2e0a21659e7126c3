"""A user's tools: functions, and a class that keeps a state. Some misbehave."""

import os
import random
import subprocess
import time
from typing import Literal


def price_of(item: str, currency: Literal["EUR", "USD"] = "EUR", tags: list[str] | None = None) -> dict[str, object]:
    """Looks up a price.

    Over two lines of summary.

    Args:
        item (str): What is bought.
        currency: The currency of the price.

    Returns:
        The price.
    """
    return {"item": item, "price": len(item) * 1.5, "currency": currency}


def fails(code: int) -> None:
    """Fails.

    :param code: which way
    """
    raise ValueError(f"no {code}")


def never_ends() -> None:
    subprocess.Popen(["sleep", "600"])
    while True:
        time.sleep(1)


def takes_memory() -> int:
    return len(b"x" * 3_000_000_000)


def says_much() -> str:
    return "y" * 50_000_000


def dies() -> None:
    os._exit(7)


def prints_and_is_random() -> int:
    print("{}")
    return random.randint(0, 10**9)


def sees_key() -> str:
    return os.environ.get("TTPA_TEST_KEY", "nothing")


def _private() -> None: ...


class Till:
    """Keeps money."""

    def __init__(self, money: int = 0) -> None:
        self.money = money

    def put(self, amount: int) -> dict[str, int]:
        """Puts money in."""
        self.money += amount
        return {"money": self.money}

    def take(self, amount: int) -> dict[str, object]:
        """Takes money out."""
        if amount > self.money:
            self.money = -1  # which must not be seen
            return {"error": "not enough"}
        self.money -= amount
        return {"money": self.money}
