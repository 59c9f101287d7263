"""Tables that translate the families of ua-parser into the words of the vendor's dashboard, and signs of device kinds.

A family that is not listed keeps its name.
"""

import re

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

# HTTP clients that are not browsers: the vendor reports "Other" for them.
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
    "K": "Other",  # the placeholder for the model in Chrome's reduced user agents
}

# The first kind with a sign in the agent decides; plain texts, because a search for them is far faster than a regular
# expression. "tv" is renamed by `tv_device_type`.
SIGNS = (
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
# Apps ("Dalvik/...", "MyShop/3 (Android 14; SM-X700)") never say "Mobile", so only the model identifies tablets.
TABLET_MODEL = re.compile(r"\bSM-[TX]\d|\bGT-P\d|\b(?:Mate|Media)?Pad\b|\bTab\b|\bNexus (?:7|9|10)\b|\bTB-?\w*\d{3}")
TYPE_OF_OS = {"iOS": "mobile", "WatchOS": "mobile", "KaiOS": "mobile", "Windows Mobile": "mobile"}
