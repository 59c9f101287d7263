"""Failed attempts to guess a token, counted for all workers in shared memory.

Used for the tokens of operators, of the webhook and of clients.

Each worker writes its own row, in which a new failure replaces the oldest one. A row holds as many failures as all
workers may have in a period, so the memory is bounded and no failure that counts is replaced. Numbers are written as
whole words, so readers need no lock.
"""

import hashlib
import hmac
import ipaddress
import logging
import mmap
import secrets
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from tornado_gateway.errors import AttemptsError

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 60.0
FAILURES_OF_ADDRESS = 10  # in a period
FAILURES = 100  # in a period, of all addresses together
_WORD_BYTES = 8
_IPV6_NETWORK_BITS = 64  # a client chooses the other bits itself

T = TypeVar("T")


class Attempts:
    """One row for each row of the scoreboard. Create it before forking. `now` is by the monotonic clock.

    In a period, `of_address` failures are allowed for each address.
    """

    def __init__(self, rows: int = 1, of_address: int = FAILURES_OF_ADDRESS) -> None:
        self._words = memoryview(mmap.mmap(-1, rows * FAILURES * 2 * _WORD_BYTES)).cast("Q")
        self._of_address = of_address

    def wait_seconds(self, address: str, now: float) -> float:
        """Return the time until the next attempt from this address is allowed, 0 if it is allowed now."""
        own, failures = _name(address), self._failures(now)
        of_address = [at for name, at in failures if name == own]
        of_all = [at for _, at in failures]
        return max(_wait_seconds(of_address, self._of_address, now), _wait_seconds(of_all, FAILURES, now))

    def failed(self, row: int, address: str, now: float, hint: str = "") -> None:
        """Count a failure. Only the process that owns the row may call it. `hint` is what the log may show."""
        start = row * FAILURES * 2
        place = min(range(start, start + FAILURES * 2, 2), key=lambda index: self._words[index + 1])
        self._words[place] = _name(address)
        self._words[place + 1] = int(now * 1e9) + 1  # 0 is a place that was never used
        self._log_limit(address, now, hint)

    def _log_limit(self, address: str, now: float, hint: str) -> None:
        own, names = _name(address), [name for name, _ in self._failures(now)]
        if names.count(own) == self._of_address or len(names) == FAILURES:
            shown = f" ({hint}...)" if hint else ""
            logger.warning(
                "too many wrong tokens, the last one%s from %.64r; further attempts get 429 for a while", shown, address
            )

    def _failures(self, now: float) -> list[tuple[int, float]]:
        """Return the addresses and times of the failures that count."""
        words, ended = self._words, max(0, int((now - PERIOD_SECONDS) * 1e9) + 1)
        places = range(0, len(words), 2)
        return [(words[place], (words[place + 1] - 1) / 1e9) for place in places if words[place + 1] > ended]


class TokenCheck:
    """Compares given tokens with the right one, for one worker, as long as there are not too many failures."""

    def __init__(self, token: str | None, attempts: Attempts | None = None, row: int = 0) -> None:
        self._token = (token or secrets.token_urlsafe()).encode()  # without a token, none is right
        self._attempts = attempts or Attempts()
        self._row = row

    def is_right(self, given: str, address: str) -> bool:
        """Return whether this is the token: see `owner`."""
        return self.owner(given, address, self._is_own) is not None

    def owner(self, given: str, address: str, find: Callable[[str], T | None]) -> T | None:
        """Return what `find` returns for a given token, None if that is not a token.

        Raise AttemptsError if there were too many failures. No token at all is not a failure.
        """
        if not given:
            return None
        now = time.monotonic()
        if wait_seconds := self._attempts.wait_seconds(address, now):
            raise AttemptsError(wait_seconds)
        found = find(given)
        if found is None:
            self._attempts.failed(self._row, address, now)
        return found

    def _is_own(self, given: str) -> Literal[True] | None:
        return True if hmac.compare_digest(given.encode(), self._token) else None


def _wait_seconds(times: list[float], limit: int, now: float) -> float:
    """Return the time until fewer than `limit` of the times are in the period."""
    return max(0.0, sorted(times)[-limit] + PERIOD_SECONDS - now) if len(times) >= limit else 0.0


def _name(address: str) -> int:
    """Return a number for an address or, with IPv6, for its network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        name = address
    else:
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        parsed = mapped or parsed
        bits = _IPV6_NETWORK_BITS if parsed.version == 6 else parsed.max_prefixlen
        name = str(ipaddress.ip_network((parsed, bits), strict=False))
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=_WORD_BYTES).digest())
