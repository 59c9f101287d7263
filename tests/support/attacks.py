"""Hostile traffic as a table: which bytes each attack sends, over how many connections, and how it treats them.

`attackers.py` sends them. Every attack is endless and random, but needs little time to make, so that the load generator
can keep the gateway busy at the lowest priority. `REQUESTS` has a well-formed request of each type.
"""

import functools
import gzip
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from core.documents import feature, rollout, rule
from endpoints import AGENTS, KEY, document
from raw_requests import MALFORMED

Random = random.Random
Blocks = Iterator[bytes]
WEBHOOK_TOKEN = "the-right-webhook-token-42"
ADMIN_TOKEN = "the-right-admin-token-4242"
ACCOUNT = f"accountId=123456&sdkKey={KEY}"
DECISION, EVENT, BATCH = 1 << 16, 1 << 20, 8 << 20  # the largest bodies
# Patterns for which backtracking takes exponential or quadratic time; the last ones are not for RE2.
PATTERNS = (
    *(r"(a+)+$", r"(a|a)*$", r"(a|aa)+$", r"(.*a){24}$", r"^([a-zA-Z0-9]+[._-]?)+@example\.com$", r".*,.*,.*,.*;$"),
    *(r"(\w+\s?)*!$", r"^(?=(a+)+$)b", r"(?<!b)(a+)+$", r"^(a+)+\1$", r"(a*)*b\1", r"((a{1,50}){1,50}){1,9}$"),
)
TEXTS = ("a" * 4096, "a" * 4095 + "!", "a," * 2048, "a " * 2048, "ab" * 2000, "é" * 2048, "a" * 60_000)


def settings(**changes: Any) -> dict[str, Any]:
    """The settings of the account under attack: a feature for each bad pattern, and one with many conditions."""
    found = document(**changes)
    segments = [{"custom_variable": {"v": f"regex({pattern})"}} for pattern in PATTERNS]
    many = ["wildcard(*x*)", "gt(1)", "1", "lower(X)", "regex(x.*y.*z$)"] * 20
    segments += [{"or": [{"custom_variable": {"v": operand}} for operand in many]}]
    segments += [{"or": [{"ua": "wildcard(*Chrome*)"}, {"country": "Nowhere"}, {"os": "regex((a+)+$)"}]}]
    for number, segment in enumerate(segments, 7000):
        campaign = rollout(number, segments=segment)
        found["campaigns"].append(campaign)
        found["features"].append(feature(number, rule(campaign), key=f"hostile-{number}"))
    return found


FEATURES = [feature["key"] for feature in settings()["features"]]


# --- Well-formed requests ---


def request(method: str, target: str | bytes, body: bytes = b"", *headers: str) -> bytes:
    target = target.encode() if isinstance(target, str) else target
    lines = "".join(f"{line}\r\n" for line in ("Host: gateway", f"Content-Length: {len(body)}", *headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), target, lines.encode("latin-1", "replace"), body)


def post(path: str, fields: Any, *headers: str) -> bytes:
    return request("POST", path, orjson.dumps(fields), *headers)


def get(path: str, *headers: str) -> bytes:
    return request("GET", path, b"", *headers)


def visitor(chance: Random) -> str:
    return f"visitor-{chance.randrange(1 << 40)}"


def agent(chance: Random) -> str:
    known: str = chance.choice(AGENTS)["user_agent"]
    return f"{known} {chance.randrange(1000)}".replace(" ", "%20")


def address(chance: Random) -> str:
    return f"{chance.choice(('81.2.69', '2.125.160', '89.160.20', '10.1.2'))}.{chance.randrange(256)}"


def event(chance: Random, **fields: Any) -> dict[str, Any]:
    user = visitor(chance)
    return {"d": {"msgId": f"{user}-1", "visId": user, "event": {"name": "purchase", "time": 1, "props": fields}}}


def flag(chance: Random, **fields: Any) -> bytes:
    known = {"featureKey": chance.choice(FEATURES), "userId": visitor(chance), "ipAddress": address(chance)}
    variables = {"plan": "gold", "v": chance.choice(("1", "x", "some text", 5))}
    return post(f"/server-side/getFlag?{ACCOUNT}", known | {"customVariables": variables} | fields)


def tracked(chance: Random) -> bytes:
    fields = {"eventName": "purchase", "userId": visitor(chance), "eventProperties": {"amount": 1}}
    return post("/server-side/trackEvent", fields)


def attribute(chance: Random) -> bytes:
    return post("/server-side/setAttribute", {"attributes": {"tier": "gold"}, "userId": visitor(chance)})


def dialect(chance: Random, path: str = "/server-side/v2-settings") -> bytes:
    query = f"a=123456&i={KEY}&r={chance.random()}&api-version={chance.choice('13')}"
    return get(f"{path}?{query}&platform={chance.choice(('server', 'client'))}", "Accept-Encoding: gzip")


def single_event(chance: Random) -> bytes:
    name = chance.choice(("purchase", "vwo_variationShown", "vwo_sdkUsageStats", "vwo_sdkDebug"))
    raw_agent = chance.choice(("", "&visitor_ua=Mozilla/5.0 (iPhone; CPU)", "&dh=1"))
    return post(f"/events/t?en={name}&a=123456&env={KEY}{raw_agent}", event(chance), "Origin: https://shop.example")


def batch(chance: Random) -> bytes:
    events = [event(chance) for _ in range(20)]
    return post("/server-side/batch-events-v2?a=123456", {"ev": events}, f"Authorization: {KEY}")


def details(chance: Random, path: str = "/get-user-details") -> bytes:
    return get(f"{path}?userAgent={agent(chance)}&ipAddress={address(chance)}&accountId=123456")


def list_check(chance: Random, path: str = "/check-attribute") -> bytes:
    return get(f"{path}?attribute={visitor(chance)}&listId=list-{chance.randrange(9)}&{ACCOUNT}")


def event_segment(chance: Random) -> bytes:
    return post("/evaluate-event-dsl?accountId=123456", {"dsl": {"or": []}, "context": {"id": visitor(chance)}})


def new_alias(chance: Random) -> bytes:
    user = visitor(chance)
    return post(f"/user-alias/setUserAlias?{ACCOUNT}", {"userId": user, "aliasId": f"alias-of-{user}"})


def alias(chance: Random) -> bytes:
    return get(f'/user-alias/getAliasUserId?{ACCOUNT}&userId=["alias-of-{visitor(chance)}","{visitor(chance)}"]')


def webhook(chance: Random) -> bytes:
    return request("POST", "/webhook", b"{}", f"X-Webhook-Token: {WEBHOOK_TOKEN}")


PROBES = ("/", "/health", "/ready", "/status", "/metrics", "/openapi.json", "/docs", "/console", "/none", "/web/none")
PREFLIGHT = ("Origin: https://shop.example", "Access-Control-Request-Headers: content-type,traceparent,x-shop")
REQUESTS: dict[str, Callable[[Random], bytes]] = {
    "/server-side/getFlag": flag,
    "/server-side/trackEvent": tracked,
    "/server-side/setAttribute": attribute,
    "/server-side/v2-settings": dialect,
    "/server-side/v2-pull": lambda chance: dialect(chance, "/server-side/v2-pull"),
    "/webhook": webhook,
    "/events/t": single_event,
    "/server-side/batch-events-v2": batch,
    "/get-user-details": details,
    "/check-attribute": list_check,
    "/evaluate-event-dsl": event_segment,
    "/user-alias/setUserAlias": new_alias,
    "/user-alias/getAliasUserId": alias,
    "/getUserData": lambda chance: details(chance, "/getUserData"),
    "/getLocation": lambda chance: details(chance, "/getLocation"),
    "/server-side/ua-parser": lambda chance: details(chance, "/server-side/ua-parser"),
    "/attributes/check": lambda chance: list_check(chance, "/attributes/check"),
    "preflight": lambda chance: request("OPTIONS", f"/events/t?en={visitor(chance)}", b"", *PREFLIGHT),
    "probes and pages": lambda chance: get(chance.choice(PROBES)),
}


# --- Hostile bodies ---


def filled(item: bytes, size: int, start: bytes = b'{"ev":[', end: bytes = b"]}") -> bytes:
    """A body of about `size` bytes that repeats an item."""
    count = (size - len(start) - len(end)) // (len(item) + 1)
    return start + b",".join([item] * count) + end


def nested(size: int, start: bytes, middle: bytes, end: bytes) -> bytes:
    depth = size // (len(start) + len(end))
    return start * depth + middle + end * depth


SMALL_EVENT = b'{"d":{"visId":"V","event":{"name":"purchase"}}}'
TEXT_OF_64_KB = b'{"d":{"visId":"V","event":{"name":"p","props":{"t":"%b"}}}}' % (b"x" * 65_500)
FLAG = b'{"featureKey":"new-checkout","userId":"u","customVariables":'
BODY_PATHS = {
    **dict.fromkeys(("/server-side/getFlag", "/server-side/trackEvent", "/server-side/setAttribute"), DECISION),
    **dict.fromkeys(("/user-alias/setUserAlias", "/evaluate-event-dsl", "/webhook", "/admin/session"), DECISION),
    "/events/t": EVENT,
    "/server-side/batch-events-v2": BATCH,
}


@functools.cache
def large_bodies(size: int) -> tuple[bytes, ...]:
    texts = filled(b'"x"', size, FLAG + b'{"v":[', b"]}}")
    return (
        *(filled(SMALL_EVENT, size), filled(b"[]", size), filled(b'{"d":1}', size), filled(TEXT_OF_64_KB, size)),
        *(filled(b'"k":1', size, b"{", b"}"), filled(b'"\\u0000\\ud83d"', size), filled(b"1.5e300", size), texts),
        filled(b'"v":"x"', size, FLAG + b"{", b"}}"),
        b'{"featureKey":"new-checkout","userId":"%b"}' % (b"u" * (size - 50)),
        b'{"featureKey":"hostile-7013","userId":"u","userAgent":"%b"}' % (b"Mozilla (" * (size // 9 - 9)),
        b'{"featureKey":"hostile-7013","userId":"u","ipAddress":"%b"}' % (b"1.2.3.4, " * (size // 9 - 9)),
        b"x" * size,
        b" " * size,
    )


@functools.cache
def deep_bodies(size: int) -> tuple[bytes, ...]:
    depths = (62 * 6, 66 * 6, 1020 * 6, 100_000, size - 300)
    in_event = b'{"d":{"visId":"V","event":{"name":"p","props":{"t":%b}}}}'
    return (
        *(nested(depth, b"[", b"", b"]") for depth in depths),
        *(nested(depth, b'{"d":', b"1", b"}") for depth in depths),
        *(in_event % nested(depth, b'{"d":', b"1", b"}") for depth in depths),
        *(FLAG + nested(depth, b'{"d":', b"1", b"}") + b"}" for depth in depths),
        *(b"[" * size, b'{"":' * (size // 4), b'[{"":' * (size // 5), b"[[],".ljust(size, b"[")),
    )


@functools.cache
def bombs(size: int) -> tuple[bytes, ...]:
    """Bodies in gzip or deflate that decode to a thousand times their size, or to nothing valid."""
    packer = zlib.compressobj(9, wbits=31)
    member = b"".join(packer.compress(bytes(1 << 20)) for _ in range(min(200, size >> 10))) + packer.flush()
    events = gzip.compress(filled(SMALL_EVENT, BATCH))
    return (
        *(member, (member * (size // len(member) + 1))[:size], gzip.compress(member), events, events[:-5]),
        *(gzip.compress(b"[" * BATCH), zlib.compress(b" " * BATCH), b"\x1f\x8b" + bytes(1000), b"", b"{}"),
    )


ODD_TEXTS = (
    *(
        b'"\xff\xfe"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\\ud83d"',
        b'"\\udc00\\ud83d"',
        b'"\\u0000"',
    ),
    *(b"1" * 100, b"-" + b"1" * 101, b"1" * 60_000, b"1e400", b"-1e-400", b"0." + b"9" * 5000, b"1e" + b"9" * 50),
    *(b"NaN", b"Infinity", b"-0", b"null", b"true", b"[]", b"{}", b'""', b'{"":{"":""}}', b'"\\x"', b"\xef\xbb\xbf1"),
    *(b'"a\\r\\nX-Injected: 1"', b'"' + b"\\ud800" * 9000 + b'"', b'"__proto__"', b'"%00%ff"', b'"NaN"', b'"1e999"'),
)
ODD_NAMES = (
    *(b"featureKey", b"userId", b"id", b"customVariables", b"userAgent", b"ipAddress", b"platformVariables", b"_vwo"),
    *(b"variationTargetingVariables", b"bucketingSeed", b"sessionId", b"postSegmentationVariables", b"eventName"),
    *(b"eventProperties", b"attributeKey", b"attributeValue", b"attributes", b"aliasId", b"d", b"ev", b"dsl", b"token"),
)


def odd_body(chance: Random) -> bytes:
    """The names of the protocol with values that do not belong to them."""
    pairs = [b'"%b":%b' % (chance.choice(ODD_NAMES), chance.choice(ODD_TEXTS)) for _ in range(chance.randrange(5))]
    known = (b'"featureKey":"new-checkout"', b'"userId":"u"', b'"eventName":"purchase"', b'"attributeKey":"k"')
    name, value = chance.choice(ODD_TEXTS), chance.choice(ODD_TEXTS)
    odd_event = b'"d":{"visId":%b,"event":{"name":%b,"props":{"p":%b}}}' % (value, name, value)
    fields = b",".join((*chance.sample(known, 2), *pairs))
    shapes = (b"{" + fields + b"}", b"{" + fields + b"," + odd_event + b"}", b"[" + fields + b"]")
    return chance.choice((*shapes, b'{"ev":[{' + odd_event + b"},{" + fields + b"}]}"))


# --- Attacks ---


@dataclass(frozen=True)
class Attack:
    """`blocks` makes the bytes of one connection, and ends if a new connection is due."""

    blocks: Callable[[Random], Blocks]
    connections: int
    pause_seconds: float = 0.0  # between two blocks
    patience_seconds: float = 10.0  # after the last block, for the responses
    reads: bool = True
    resets: bool = False  # instead of waiting for the responses
    half_closes: bool = False


def endless(make: Callable[[Random], bytes], depth: int = 16) -> Callable[[Random], Blocks]:
    """Pipelined requests without end, `depth` in each block."""

    def blocks(chance: Random) -> Blocks:
        while True:
            yield b"".join(make(chance) for _ in range(depth))

    return blocks


def repeated(make: Callable[[Random], bytes], times: int = 1) -> Callable[[Random], Blocks]:
    return lambda chance: (make(chance) for _ in range(times))


def any_request(chance: Random) -> bytes:
    return chance.choice(tuple(REQUESTS.values()))(chance)


def with_body(bodies: Callable[[int], tuple[bytes, ...]], *headers: str) -> Callable[[Random], bytes]:
    def make(chance: Random) -> bytes:
        path, size = chance.choice(tuple(BODY_PATHS.items()))
        return request("POST", path, chance.choice(bodies(size)), *headers)

    return make


def regex_request(chance: Random) -> bytes:
    fields = {"customVariables": {"v": chance.choice(TEXTS)}, "featureKey": f"hostile-{7000 + chance.randrange(14)}"}
    return flag(chance, **fields, userAgent=chance.choice(TEXTS))


def odd_request(chance: Random) -> bytes:
    odd_query = "".join(chance.choice(("%ff", "%", "%u0041", "[", "\u00e9", "&", "=", "%00", "+")) for _ in range(20))
    target = f"{chance.choice(tuple(BODY_PATHS))}?userId={odd_query}&listId={odd_query}".encode("latin-1")
    return request(chance.choice(("POST", "POST", "GET")), target, odd_body(chance))


def cut_request(chance: Random) -> bytes:
    whole = any_request(chance)
    return whole[: chance.randrange(len(whole))]


def mutated(chance: Random) -> bytes:
    data = bytearray(any_request(chance))
    for _ in range(chance.randrange(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def malformed(chance: Random) -> bytes:
    return chance.choice(tuple(MALFORMED.values()))


def slow_head(chance: Random) -> Blocks:
    yield b"POST /server-side/getFlag HTTP/1.1\r\nHost: gateway\r\n"
    while True:
        yield b"X-%d: y\r\n" % chance.randrange(1000)


def slow_body(chance: Random) -> Blocks:
    path, size = chance.choice(tuple(BODY_PATHS.items()))
    yield f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {size}\r\n\r\n".encode()
    while True:
        yield b" "


def stopped_body(chance: Random) -> Blocks:
    """All but the last byte, quickly; then nothing."""
    path, size = chance.choice((("/server-side/batch-events-v2", BATCH), ("/events/t", EVENT)))
    yield request("POST", path, large_bodies(size)[chance.randrange(4)])[:-1]


def tiny_chunks(chance: Random) -> Blocks:
    yield b"POST /server-side/batch-events-v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"1\r\n \r\n" * 2000


def silent(chance: Random) -> Blocks:
    """Not a byte: the connection is just there."""
    return iter(())


def many_headers(chance: Random) -> bytes:
    count, size = chance.choice(((120, 20), (129, 5), (1000, 20), (60, 1000), (2, 40_000), (1, 70_000)))
    names = ("X-%d", "Cookie", "X-Forwarded-For", "Accept-Encoding", "If-None-Match", "traceparent", "Connection")
    value = chance.choice(("y", "1.2.3.4,", "gzip;q=0.5,", '"x",', "::1 ", "\u00e9")) * size
    lines = [f"{chance.choice(names).replace('%d', str(number))}: {value[:size]}" for number in range(count)]
    return request("GET", chance.choice(("/server-side/v2-settings", "/get-user-details", "/status")), b"", *lines)


def endless_head(chance: Random) -> Blocks:
    yield b"GET /health HTTP/1.1\r\nHost: a\r\n"
    while True:
        yield b"X-Y: z\r\n" * 500


def long_query(chance: Random) -> bytes:
    ids = ",".join(f'"{visitor(chance)}"' for _ in range(chance.choice((100, 1200))))
    path = chance.choice(
        (
            f"/user-alias/getAliasUserId?{ACCOUNT}&userId=[{ids}]",
            f"/get-user-details?userAgent={'Mozilla%20(' * 5000}",
            f"/server-side/ua-parser?userAgent={'Android%20' * 6000}",
            f"/get-user-details?ipAddress={'1.2.3.4,' * 7000}",
            f"/check-attribute?listId=x&attribute={'%25' * 20_000}",
            "/" * 60_000,
            "/health?" + "a=b&" * 15_000,
        )
    )
    return get(path)


def wrong_token(chance: Random) -> bytes:
    token = f"wrong-token-{chance.random()}"
    return chance.choice(
        (
            request("POST", "/webhook", b"{}", f"X-Webhook-Token: {token}"),
            request("POST", "/webhook", b"{}", f"Authorization: Bearer {token * 500}"),
            post("/admin/session", {"token": token}, "Content-Type: application/json"),
            post("/admin/session", {"token": ["x"] * 9}, "Content-Type: application/json"),
            get(chance.choice(("/admin/overview", "/admin/events?limit=1e9")), f"Authorization: Bearer {token}"),
            get("/admin/features", f"Cookie: session={token}; __Host-session={token}"),
            post("/admin/events/requeue", {"ids": None}, f"Authorization: Bearer \u00e9{token}"),
        )
    )


def pipelined(chance: Random) -> bytes:
    return any_request(chance) * 50


ATTACKS = {
    "largest bodies": Attack(repeated(with_body(large_bodies), 4), 24),
    "deepest JSON": Attack(repeated(with_body(deep_bodies), 4), 16),
    "worst patterns": Attack(endless(regex_request, 4), 16),
    "slow heads": Attack(slow_head, 300, pause_seconds=1),
    "slow bodies": Attack(slow_body, 200, pause_seconds=1),
    "bodies that stop": Attack(stopped_body, 40, patience_seconds=40),
    "silent connections": Attack(silent, 300, patience_seconds=80),
    "tiny chunks": Attack(tiny_chunks, 8),
    "clients that never read": Attack(endless(dialect), 60, reads=False),
    "never read, other types": Attack(endless(any_request), 60, reads=False),
    "unfinished requests": Attack(repeated(cut_request), 24, resets=True),
    "half-closed connections": Attack(repeated(cut_request), 24, half_closes=True),
    "pipelining": Attack(endless(pipelined, 1), 32),
    "headers": Attack(repeated(many_headers, 4), 24),
    "heads without end": Attack(endless_head, 16),
    "long queries": Attack(endless(long_query, 2), 16),
    "compressed bombs": Attack(repeated(with_body(bombs, "Content-Encoding: gzip"), 2), 16),
    "deflated bombs": Attack(repeated(with_body(bombs, "Content-Encoding: deflate"), 2), 8),
    "odd texts and numbers": Attack(endless(odd_request), 16),
    "malformed requests": Attack(repeated(malformed), 24),
    "mutated requests": Attack(repeated(mutated, 8), 24),
    "wrong tokens": Attack(endless(wrong_token, 4), 16),
    "new connections": Attack(repeated(any_request), 100, resets=True),
    "many connections": Attack(repeated(any_request), 1500, patience_seconds=5),
}
FLOODS = {f"flood of {name}": Attack(endless(make), 32) for name, make in REQUESTS.items()}
EVERYTHING = ATTACKS | FLOODS

# --- A mixed load that is not hostile, for scripts/soak ---

VISITORS = 2000  # different requests of each type
PAUSES = {"/webhook": 1.0, "/server-side/v2-pull": 1.0, "probes and pages": 0.2}


def known(make: Callable[[Random], bytes]) -> Callable[[Random], bytes]:
    """One of so many requests, which are the same each time, so that nothing is new after a while."""
    return lambda chance: make(Random(chance.randrange(VISITORS)))


MIXED = {
    f"mixed {name}": Attack(repeated(known(make), 300), 2, PAUSES.get(name, 0.05), patience_seconds=1)
    for name, make in REQUESTS.items()
}
