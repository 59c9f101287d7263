"""Facts about the visitor's system, browser and device, from the user agent.

Used by getFlag (segments on `os`, `device_type`, ...) and by `/get-user-details`. ua-parser's native resolver finds the
families, `device_words` translates them into the words that the vendor's dashboard uses.
"""

import threading
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import orjson
from ua_parser import BestAvailableResolver, Domain, Resolver, load_lazy_builtins

from tornado_gateway.enrichment.device_words import (
    BROWSER_WORDS,
    DEVICE_WORDS,
    OS_WORDS,
    SIGNS,
    TABLET_MODEL,
    TYPE_OF_OS,
)
from tornado_gateway.enrichment.words import Words, digest_of, read_words

_LONGEST_AGENT = 2048  # characters; real ones have up to about 500
_LONGEST_KNOWN = 512  # characters of an agent that is remembered, because 10,000 are
_SECTIONS = ("os", "browser", "device", "device_type")


class DeviceReader:
    """Derives device facts from user agents, with a cache. For one thread.

    `map_file` (UA_MAP_FILE) replaces words: `{"os": {...}, "browser": {...}, "device": {...}, "device_type": {...}}`.
    The keys of the first three are ua-parser families (`Mac OS X`, `Chrome Mobile`, `Pixel 8`); a key of `device_type`
    is a device family (`{"iPad": "mobile"}`) or one of mobile, tablet, desktop, tv, spider (`{"tablet": "mobile"}`).
    To distinguish mobile browsers from desktop ones, map them to their own names:
    `{"browser": {"Chrome Mobile": "Chrome Mobile"}}`.
    """

    def __init__(self, cache_size: int = 10_000, map_file: Path | None = None, tv_device_type: str = "desktop") -> None:
        own: Words = read_words(map_file, _SECTIONS) if map_file else {section: {} for section in _SECTIONS}
        # Names the rules: the same in all processes with the same rules.
        self.version = f"{metadata.version('ua-parser')} {digest_of(own)}"
        self._os = OS_WORDS | own["os"]
        self._browser = BROWSER_WORDS | own["browser"]
        self._own_browser = own["browser"]
        self._device = DEVICE_WORDS | own["device"]
        self._device_type = {"tv": tv_device_type} | own["device_type"]
        self._resolve: Resolver | None = None
        self._loading = threading.Lock()
        self._recent = lru_cache(maxsize=cache_size)(self._read)
        self._long = 0  # agents that were too long to be remembered

    def load(self) -> Resolver:
        """Load the rules. It takes 0.1 s and 26 MB, which a gateway without device rules never needs.

        The first lookup does it too. Call it earlier, in a thread, so that no visitor waits for it.
        """
        with self._loading:  # concurrent callers must not load twice: both copies would stay in memory
            if self._resolve is None:
                self._resolve = BestAvailableResolver(load_lazy_builtins())
            return self._resolve

    def facts(self, user_agent: str) -> Mapping[str, str]:
        """Return os, os_version, browser_string, browser_version, device_type, device and ps. Never raise.

        The map is shared between callers: do not change it.
        """
        return (self._recent(user_agent) if len(user_agent) <= _LONGEST_KNOWN else self._read_long(user_agent))[0]

    def encoded(self, user_agent: str) -> bytes:
        """Return `facts` as JSON, encoded once."""
        return (self._recent(user_agent) if len(user_agent) <= _LONGEST_KNOWN else self._read_long(user_agent))[1]

    @property
    def hits(self) -> int:
        """Cache hits."""
        return self._recent.cache_info().hits

    @property
    def misses(self) -> int:
        """Cache misses: agents that were parsed."""
        return self._recent.cache_info().misses + self._long

    def _read_long(self, user_agent: str) -> tuple[dict[str, str], bytes]:
        self._long += 1
        return self._read(user_agent[:_LONGEST_AGENT])

    def _read(self, user_agent: str) -> tuple[dict[str, str], bytes]:
        # Lone surrogates (from JSON escapes) cannot be passed to the native resolver.
        agent = user_agent if user_agent.isascii() else user_agent.encode("utf-8", "replace").decode()
        found = (self._resolve or self.load())(agent, Domain.ALL)
        os, browser, device = found.os, found.user_agent, found.device
        os_family = (os and os.family) or "Other"
        device_family = (device and device.family) or "Other"

        os_word = self._os.get(os_family, os_family)
        os_version = _version(os.major, os.minor, os.patch) if os and os_word != "Other" else ""
        browser_word = self._browser_word(agent, (browser and browser.family) or "Other")
        browser_version = (
            _version(browser.major, browser.minor, browser.patch) if browser and browser_word != "Other" else ""
        )
        kind = _device_kind(agent, os_family, device_family)
        device_type = self._device_type.get(device_family) or self._device_type.get(kind, kind)
        # The vendor's desktops have no device; televisions count as such while they are called desktops.
        is_desktop = kind == "desktop" or device_type == "desktop"
        device_word = "Other" if is_desktop else self._device.get(device_family, device_family)
        is_mobile = "true" if kind in ("mobile", "tablet") else "false"
        facts = {
            "os": os_word,
            "os_version": os_version,
            "browser_string": browser_word,
            "browser_version": browser_version,
            "device_type": device_type,
            "device": device_word,
            "ps": f"{device_type}:{is_mobile}:{os_word}:{os_version}:{browser_word}:{browser_version}:{device_word}",
        }
        return facts, bytes(memoryview(orjson.dumps(facts)))  # orjson's own bytes keep a buffer of 4 KB

    def _browser_word(self, agent: str, family: str) -> str:
        if family in self._own_browser:
            return self._own_browser[family]
        # Apps: ua-parser takes the app's name, or guesses the system's browser from the system.
        if "CFNetwork/" in agent or (
            family in ("Android", "Mobile Safari UI/WKWebView") and not agent.startswith("Mozilla/")
        ):
            return "Other"
        return self._browser.get(family, family)


def _version(*parts: str | None) -> str:
    """Join the parts before the first missing one with dots."""
    known = []
    for part in parts:
        if not part:
            break
        known.append(part)
    return ".".join(known)


def _device_kind(agent: str, os_family: str, device_family: str) -> str:
    if device_family == "Spider":
        return "spider"
    if "Macintosh" in agent:  # iPads claim to be a Macintosh too, but an app there keeps "Mobile/", Chrome "CriOS"
        return "tablet" if "Mobile/" in agent or os_family == "iOS" else "desktop"
    if "Tablet PC" in agent:  # a component of old Windows desktops
        return "desktop"
    for kind, signs in SIGNS:
        for sign in signs:
            if sign in agent:
                return kind
    if os_family == "Android":  # without "Mobile": a tablet's browser, or an app
        is_tablet = agent.startswith("Mozilla/") or TABLET_MODEL.search(agent)
        return "tablet" if is_tablet else "mobile"
    return TYPE_OF_OS.get(os_family, "desktop")
