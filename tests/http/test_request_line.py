"""The lenient reading of a request line, by itself."""

import pytest

from tornado_gateway.http.request_line import encoded, path_of, start_of_rejected_line

LINE = b"POST /events/t?a b HTTP/1.1\r"
MESSAGES = {
    "nothing": b"",
    "GET": b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty lines": b"\r\n\n",
    "body": b"POST /x HTTP/1.1\r\ncontent-length: 9\r\n\r\n" + b"a b\r\n\r\nGE",
    "empty body": b"POST /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "chunked": b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\n\n\na\r\n0\r\nT: u\r\n\r\n",
}


def test_d1_only_what_is_not_allowed_is_encoded():
    line = b'POST /events/t?a=b c\td&\xc3\xa4=%20+"<>{}|\\^` HTTP/1.1 x HTTP/1.0\r'
    assert encoded(line) == b'POST /events/t?a=b%20c%09d&%C3%A4=%20+"<>{}|\\^`%20HTTP/1.1%20x HTTP/1.0\r\n'


@pytest.mark.parametrize("line", [LINE[:-1], LINE.replace(b"a b", b"ab"), LINE + b"\r", LINE.replace(b"1.1", b"2.0")])
def test_d1_what_has_nothing_to_encode_or_no_end_stays_rejected(line):
    assert encoded(line) is None


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (LINE, b"/events/t"),
        (b"GET /a/b?", b"/a/b"),
        (b"GET //a?b\xff", b"//a"),
        (b"GET /a", None),
        (b"GET /a b?c", None),
        (b"HEAD /a?b", None),
        (b"GET http://a/b?c", None),
        (b"GET  /a?b", None),
        (b"", None),
    ],
)
def test_d1_the_path_of_a_line_and_of_its_beginning(line, path):
    assert path_of(line) == path


@pytest.mark.parametrize("first", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("second", MESSAGES.values(), ids=MESSAGES)
def test_d1_where_the_line_is_that_the_parser_rejects(first, second):
    before = first + second
    data = before + LINE + b"\nHost: a\r\n\r\n"
    start = start_of_rejected_line(data)
    assert start is not None
    assert data[start:].startswith(LINE)
    assert data[:start] == before
    assert start_of_rejected_line(before + LINE[:-8]) == len(before)
    assert start_of_rejected_line(before + b"GET /x HTTP/1.1\r\nBad Header: x\r\n\r\n") is None
    assert start_of_rejected_line(before) is None
