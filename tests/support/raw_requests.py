"""Requests as bytes: good ones, and what no server may take for a request."""

import itertools

from http_harness import get, post

GOOD = [
    get('/echo?userId=["x"]'),
    get("/async?0"),
    get("/const", "Connection: close"),
    post("/echo", b'{"featureKey":"plain"}'),
    post("/echo", b"{}", "Expect: 100-continue"),
    post("/echo", b"{}", "Connection: Upgrade", "Upgrade: h2c"),
    get("/echo", "Transfer-Encoding: chunked", method="POST") + b"3;a=b\r\nabc\r\n0\r\nT: u\r\n\r\n",
    get("/const", version="1.0", method="HEAD"),
    get("/const", "X: " + "y" * 3000),
    post("/echo?u=Mozilla/5.0 (X11)\t\xe4", b"GET /echo?a b HTTP/1.1\r\n"),
]
NOISE = [b"\r\n", b"\0", b" ", b"\t", b":", b"\xff", b"0", b"-", b"\n", b"HTTP/1.1", b"Transfer-Encoding: chunked\r\n"]
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
MALFORMED = {
    "no-http": b"hello\r\n\r\n",
    "tls-hello": bytes.fromhex("160301020001000100"),
    "nul": b"\0" * 40,
    "lower-case-method": b"get / HTTP/1.1\r\n\r\n",
    "unknown-method": b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
    "h2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no-such-version": b"GET / HTTP/1.7\r\nHost: a\r\n\r\n",
    "length-and-chunked": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two-lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "same-length-twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "list-of-lengths": POST + b"Content-Length: 2, 2\r\n\r\nab",
    "signed-length": POST + b"Content-Length: +2\r\n\r\nab",
    "negative-length": POST + b"Content-Length: -2\r\n\r\nab",
    "hex-length": POST + b"Content-Length: 0x2\r\n\r\nab",
    "empty-length": POST + b"Content-Length:\r\n\r\nab",
    "huge-length": POST + b"Content-Length: 99999999999999999999999\r\n\r\nab",
    "space-before-colon": POST + b"Content-Length : 2\r\n\r\nab",
    "unknown-coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked-not-last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked-twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-in-http10": b"POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk-size-0x": POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk-size-negative": POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "chunk-size-overflow": POST + b"Transfer-Encoding: chunked\r\n\r\n11111111111111111\r\na\r\n",
    "chunk-size-space": POST + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    "chunk-too-long": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "chunk-bare-lf": POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "bare-lf": b"GET /const HTTP/1.1\nHost: a\n\n",
    "bare-lf-in-header": b"GET /const HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "bare-cr-in-header": b"GET /const HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "folded-header": b"GET /const HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "header-before-first": b"GET /const HTTP/1.1\r\n Host: a\r\n\r\n",
    "nul-in-header": b"GET /const HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "space-in-header-name": b"GET /const HTTP/1.1\r\nHo st: a\r\n\r\n",
    "empty-header-name": b"GET /const HTTP/1.1\r\n: a\r\n\r\n",
}


def pieces(data, cuts):
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(at)]
