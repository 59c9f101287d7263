"""What a user agent says about the visitor's system, browser and device.

Used by getFlag (segments on `os`, `device_type`, ...) and by `/get-user-details`. ua-parser's native resolver finds the
families, the tables here turn them into the words that the vendor's dashboard uses.
"""

import re
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import orjson
from ua_parser import BestAvailableResolver, Domain, Resolver, load_lazy_builtins

from tornado_gateway.errors import ConfigError

Words = dict[str, dict[str, str]]

# ---------------------------------------------------------------------------------------------------------------------
# The tables: ua-parser's family -> our word. A family that is not listed keeps its name.

_LINUX = (
    "Arch Linux", "CentOS", "Debian", "Fedora", "Gentoo", "Kubuntu", "Linux", "Linux Mint", "Lubuntu", "Mageia",
    "Mandriva", "PCLinuxOS", "Puppy", "Red Hat", "SUSE", "Slackware", "Ubuntu", "openSUSE",
)  # fmt: skip
# ua-parser now gives Windows' edition as the version; old rules gave it as part of the family.
_WINDOWS_EDITIONS = ("95", "98", "2000", "ME", "NT", "XP", "Vista", "7", "8", "8.1", "10", "11", "CE", "RT", "RT 8.1")

OS_WORDS = {
    **dict.fromkeys(_LINUX, "Linux"),
    **{f"Windows {edition}": "Windows" for edition in _WINDOWS_EDITIONS},
    "Mac OS X": "MacOS",
    "Mac OS": "MacOS",
    "macOS": "MacOS",
    "iPadOS": "iOS",
    "BlackBerry OS": "BlackBerry",
    "BlackBerry Tablet OS": "BlackBerry",
    "Web0S": "webOS",  # the same system: LG's televisions write a zero
}

# Programs that fetch, but that nobody browses with: the vendor reports "Other" for them.
_FETCHERS = (
    "AHC", "Alamofire", "Apache-CXF", "Apache-HttpClient", "Apple Watch App", "Axel", "CFNetwork", "Go-CF-client",
    "Go-http-client", "Google-HTTP-Java-Client", "GuzzleHttp", "HTTPClient", "HTTPie", "JNLP", "Java", "Jersey",
    "Microsoft-CryptoAPI", "PostmanRuntime", "PycURL", "Python Requests", "Python aiohttp", "Python-urllib",
    "ReactorNetty", "Vert.x-WebClient", "Wget", "WinHTTP", "WindowsPowerShell", "aihttp", "akka-http", "aria2", "axios",
    "curl", "fetch libfetch", "go-resty", "got", "http%20client", "http.rb", "insomnia", "libcurl-agent",
    "libwww-perl", "lua-resty-http", "okhttp", "reqwest", "scalaj-http", "unirest-java", "unirest-net",
    "unirest-nodejs", "unirest-php", "unirest-python", "unirest-ruby", "ureq", "urlgrabber", "wget2",
)  # fmt: skip

BROWSER_WORDS = {
    **dict.fromkeys(_FETCHERS, "Other"),
    **dict.fromkeys(("Chrome Mobile", "Chrome Mobile iOS", "Chrome Mobile WebView"), "Chrome"),
    **dict.fromkeys(("Mobile Safari", "Mobile Safari UI/WKWebView"), "Safari"),
    **dict.fromkeys(("Firefox Mobile", "Firefox iOS", "Firefox Alpha", "Firefox Beta"), "Firefox"),
    "Edge Mobile": "Edge",
    **dict.fromkeys(("IE", "IE Mobile", "IE Large Screen"), "Internet Explorer"),
    **dict.fromkeys(("Opera Mobile", "Opera Mini", "Opera Tablet", "Opera GX", "Opera Touch"), "Opera"),
}

DEVICE_WORDS = {
    "Mac": "Other",  # desktops have no device; older ua-parser rules did not name Macs either
    "iOS-Device": "Other",  # an iOS app that names no model
    "K": "Other",  # what Chrome's shortened agents say in place of the model
}

# The first kind with a sign in the agent decides; plain texts, because a search for them is far faster than a regular
# expression. "tv" is renamed by `tv_device_type`.
_SIGNS = (
    ("tv", ("PlayStation", "Xbox", "Nintendo")),  # first: Nintendo's call themselves "Mobile; like iPhone OS"
    ("tablet", ("iPad",)),
    ("mobile", ("iPhone", "iPod", "Windows Phone", "IEMobile")),
    (
        "tv",
        (" TV", "-TV", "/TV", "_TV", "AppleTV", "DTV", "GoogleTV", "HbbTV", "SmartTV", "Smart-TV", "smart-tv", " AFT",
         "BRAVIA", "Chromecast", "CrKey", "Inettv", "Large Screen", "MIBOX", "MiBOX", "MiTV", "NetCast", "Roku/",
         "VIERA", "Viera", "Web0S"),
    ),
    ("tablet", ("Tablet", "tablet", "Kindle", "Silk/", "; KF", "PlayBook", "TouchPad")),
    ("mobile", ("Mobi", "Opera Mini", "MIDP", "BlackBerry", "Symbian", "Series40", "Series60", "KAIOS")),
)  # fmt: skip
# Apps ("Dalvik/...", "MyShop/3 (Android 14; SM-X700)") never say "Mobile", so only the model tells their tablets.
_TABLET_MODEL = re.compile(r"\bSM-[TX]\d|\bGT-P\d|\b(?:Mate|Media)?Pad\b|\bTab\b|\bNexus (?:7|9|10)\b|\bTB-?\w*\d{3}")
_TYPE_OF_OS = {"iOS": "mobile", "WatchOS": "mobile", "KaiOS": "mobile", "Windows Mobile": "mobile"}

# ---------------------------------------------------------------------------------------------------------------------

_LONGEST_AGENT = 2048  # characters; real ones have up to about 500
_SECTIONS = ("os", "browser", "device", "device_type")


def read_words(path: Path, sections: Iterable[str]) -> Words:
    """Read a JSON file of `{section: {word: replacement}}`; raise ConfigError with everything that is wrong in it."""
    sections = tuple(sections)
    expected = "expected an object with some of the keys " + ", ".join(sections)
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"{path}: {expected}, got no readable file ({error.strerror})"]) from None
    except orjson.JSONDecodeError as error:
        raise ConfigError([f"{path}: {expected}, got no valid JSON ({error})"]) from None
    if not isinstance(document, dict):
        raise ConfigError([f"{path}: {expected}, got {_shown(document)}"])
    problems = []
    for section, words in document.items():
        if section not in sections:
            problems.append(f"{path}: {section}: expected one of {', '.join(sections)}")
        elif not isinstance(words, dict):
            problems.append(f"{path}: {section}: expected an object of texts, got {_shown(words)}")
        else:
            problems += [
                f"{path}: {section}.{word}: expected a text that is not empty, got {_shown(replacement)}"
                for word, replacement in words.items()
                if not isinstance(replacement, str) or not replacement.strip()
            ]
    if problems:
        raise ConfigError(problems)
    return {section: document.get(section, {}) for section in sections}


def _shown(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


class DeviceReader:
    """Turns user agents into device facts and remembers the recent ones. For one thread.

    `map_file` (UA_MAP_FILE) replaces words: `{"os": {...}, "browser": {...}, "device": {...}, "device_type": {...}}`.
    The keys of the first three are ua-parser families (`Mac OS X`, `Chrome Mobile`, `Pixel 8`); a key of `device_type`
    is a device family (`{"iPad": "mobile"}`) or one of mobile, tablet, desktop, tv, spider (`{"tablet": "mobile"}`).
    To tell mobile browsers from desktop ones, give their names back: `{"browser": {"Chrome Mobile": "Chrome Mobile"}}`.
    """

    def __init__(self, cache_size: int = 10_000, map_file: Path | None = None, tv_device_type: str = "desktop") -> None:
        own: Words = read_words(map_file, _SECTIONS) if map_file else {section: {} for section in _SECTIONS}
        self._os = OS_WORDS | own["os"]
        self._browser = BROWSER_WORDS | own["browser"]
        self._own_browser = own["browser"]
        self._device = DEVICE_WORDS | own["device"]
        self._device_type = {"tv": tv_device_type} | own["device_type"]
        self._resolve: Resolver | None = None
        self._loading = threading.Lock()
        self._recent = lru_cache(maxsize=cache_size)(self._read)

    def load(self) -> Resolver:
        """Get ready to answer: a tenth of a second and 26 MB that a gateway without device rules never pays for.

        The first question does it too; call it before, in a thread, where that would make a visitor wait.
        """
        with self._loading:  # two that ask at once must not load twice: what the slower one has made stays in memory
            if self._resolve is None:
                self._resolve = BestAvailableResolver(load_lazy_builtins())
            return self._resolve

    def facts(self, user_agent: str) -> Mapping[str, str]:
        """Return os, os_version, browser_string, browser_version, device_type, device and ps; never raises.

        The map is shared between callers: do not change it.
        """
        return self._recent(user_agent if len(user_agent) <= _LONGEST_AGENT else user_agent[:_LONGEST_AGENT])[0]

    def encoded(self, user_agent: str) -> bytes:
        """Return `facts` as JSON, encoded once."""
        return self._recent(user_agent if len(user_agent) <= _LONGEST_AGENT else user_agent[:_LONGEST_AGENT])[1]

    @property
    def hits(self) -> int:
        """How many questions the memory of recent agents has answered."""
        return self._recent.cache_info().hits

    @property
    def misses(self) -> int:
        """How many agents had to be parsed."""
        return self._recent.cache_info().misses

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
    """Join with dots up to the first part that is missing."""
    known = []
    for part in parts:
        if not part:
            break
        known.append(part)
    return ".".join(known)


def _device_kind(agent: str, os_family: str, device_family: str) -> str:
    if device_family == "Spider":
        return "spider"
    if "Macintosh" in agent:  # iPads ask as Macintosh too, but an app there keeps "Mobile/", Chrome "CriOS"
        return "tablet" if "Mobile/" in agent or os_family == "iOS" else "desktop"
    if "Tablet PC" in agent:  # a component of old Windows desktops
        return "desktop"
    for kind, signs in _SIGNS:
        for sign in signs:
            if sign in agent:
                return kind
    if os_family == "Android":  # without "Mobile": a tablet's browser, or an app
        is_tablet = agent.startswith("Mozilla/") or _TABLET_MODEL.search(agent)
        return "tablet" if is_tablet else "mobile"
    return _TYPE_OF_OS.get(os_family, "desktop")
