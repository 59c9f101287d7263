"""`verify`, as a real process: files that pass and fail, text and JUnit XML, a settings document and a gateway."""

from xml.etree import ElementTree

import orjson
import pytest
from commands import run
from exchanges import exchange
from process import SAMPLE_SETTINGS, Gateway, free_port

PASSING = """
cases:
  - feature: new-checkout
    user: user-1
    variables: {plan: gold}
    expect: {enabled: true, variation: Two steps, variables: {headline: Almost there}}
  - feature: new-checkout
    user: user-1
    variables: &guest {plan: tin}
    expect: {variation: 1}
  - {feature: dark-mode, user: 17, variables: *guest, expect: {enabled: false}}
  - feature: beta-console
    user: qa-anna
    ip: 198.51.100.7
    expect: {enabled: true, variation: Read only}
"""
FAILING = """
cases:
  - feature: new-checkout
    user: user-1
    variables: {plan: gold}
    expect: {enabled: false}
  - feature: new-checkout
    user: user-1
    variables: {plan: "]]>\\u0001"}
    expect:
      variation: Two steps
      variables: {headline: Hello, missing: 1}
  - {feature: dark-mode, user: "17", expect: {enabled: false}}
"""
MISTAKES = """
cases:
  - feature: new-chekout
    user: yes
    expect: {enbaled: true}
  - feature: new-checkout
    user: 5
    user: 6
    expect: {enabled: 1}
  - user: a
  - 17
  - {feature: dark-mode, user: u, expect: {enabled: false, variation: Dark}}
  - {feature: dark-mode, user: v, variables: {day: 2027-01-01}, expect: {}}
  - {feature: dark-mode, user: w, expect: {enabled: false}}
  - {feature: dark-mode, user: w, expect: {enabled: true}}
  - {feature: dark-mode, user: x, ip: 999.1.1.1, expect: {enabled: true}}
"""
EXPECTED_MISTAKES = (
    "case 1 (line 3): user: expected a text or a number, got True. Put it in quotes",
    "case 1 (line 3): unknown field expect.enbaled. Did you mean enabled?",
    "case 1 (line 3): unknown feature new-chekout. Did you mean new-checkout?",
    "case 2 (line 8): user is given twice",
    "case 2 (line 6): expect.enabled: expected true or false, got 1",
    "case 3 (line 10): feature is missing",
    "case 3 (line 10): expect is missing",
    "case 4 (line 11): expected feature, user and expect, got 17",
    "case 5 (line 12): expect: a feature that is not enabled has neither variation nor variables",
    "case 6 (line 13): variables: expected names with JSON values, got {'day': datetime.date(2027, 1, 1)}",
    "case 6 (line 13): expect: expected at least one of enabled, variation, variables",
    "case 8 (line 15): has the feature and visitor of case 7 (line 14)",
    "case 9 (line 16): ip: expected an IPv4 or IPv6 address, got '999.1.1.1'",
)


@pytest.fixture
def verify(tmp_path):
    def verify(text, *arguments, source=("--settings", SAMPLE_SETTINGS), **environment):
        (tmp_path / "cases.yaml").write_text(text)
        paths = ("--expect", tmp_path / "cases.yaml", "--junit", tmp_path / "junit.xml")
        return run("verify", *map(str, [*paths, *source, *arguments]), **environment)

    return verify


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(tmp_path_factory.mktemp("verify") / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        yield gateway


def test_cases_that_pass(verify, tmp_path):
    result = verify(PASSING)
    assert (result.returncode, result.stdout) == (0, "4 passed, 0 failed\n"), result.stderr
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("4", "0")
    assert [case.get("classname") for case in suite] == ["new-checkout", "new-checkout", "dark-mode", "beta-console"]
    assert suite.find("testcase/failure") is None


def check_failures(result, junit, explanation):
    """Check text and XML of the failing cases."""
    assert result.returncode == 1, result.stderr
    assert result.stdout.endswith("1 passed, 2 failed\n")
    for line in (
        "FAILED case 1 (line 3): new-checkout for user-1",
        "enabled: expected false, got true",
        "FAILED case 2 (line 7)",
        'variation: expected "Two steps", got "Everyone"',
        "variables.missing: expected 1, got none",
        explanation,
    ):
        assert line in result.stdout
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    failures = [case.find("failure") for case in suite]
    assert [failure is not None for failure in failures] == [True, True, False]
    assert failures[0].get("message") == "enabled: expected false, got true"
    assert explanation in failures[0].text


def test_cases_that_fail_are_explained(verify, tmp_path):
    result = verify(FAILING)
    check_failures(result, tmp_path / "junit.xml", 'plan is "gold": the user has "gold"')


def test_a_gateway_is_verified_without_events(verify, gateway, tmp_path):
    before = exchange(gateway, "GET", "/status")[2]["events"]["received"]
    source = ("--url", f"http://127.0.0.1:{gateway.port}")
    assert verify(PASSING, source=source).returncode == 0
    result = verify(FAILING, source=source, ADMIN_TOKEN=gateway.admin_token)
    check_failures(result, tmp_path / "junit.xml", 'plan is "gold": the user has "gold"')
    check_failures(verify(FAILING, source=source), tmp_path / "junit.xml", "not explained: set ADMIN_TOKEN")
    assert exchange(gateway, "GET", "/status")[2]["events"]["received"] == before
    assert "Did you mean new-checkout?" in verify(MISTAKES, source=source).stderr


def test_all_mistakes_of_a_file_are_listed(verify):
    result = verify(MISTAKES)
    assert result.returncode == 2
    assert result.stderr.splitlines()[1:] == [f"  - {line}" for line in EXPECTED_MISTAKES]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a list `cases:`"),
        ("cases: []", "expected one list `cases:` with at least one case"),
        ("cases: [}", "line 1: not YAML"),
        ("case: []", "unknown field case. Did you mean cases?"),
        ("cases: [{feature: dark-mode, user: u, variables: &a {a: *a}, expect: {enabled: true}}]", "expected at most"),
        ("a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40)), "expected at most"),
        ("[" * 5000, "nested too deeply"),
        ("cases: [{feature: dark-mode, user: \x00}]", "not YAML"),
        ("cases: [{feature: !!python/object:os.system x}]", "line 1: not YAML: could not determine a constructor"),
        (
            "cases: [{feature: dark-mode, user: " + "9" * 40 + ", expect: {enabled: true}}]",
            "user: expected a text or a",
        ),
        (
            'cases: [{feature: dark-mode, user: "\\uD800", expect: {enabled: true}}]',
            "user: expected a text or a number",
        ),
        ("cases: [{feature: dark-mode, user: u, variables: {[1]: 2}, expect: {}}]", "not YAML: found unhashable key"),
        (orjson.dumps({"cases": [1]}).decode(), "case 1 (line 1): expected feature, user and expect, got 1"),
    ],
)
def test_a_file_without_cases(verify, text, message):
    result = verify(text)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_that_are_not_json_are_named(verify, tmp_path):
    (tmp_path / "settings.json").write_text("{")
    result = verify(PASSING, source=("--settings", tmp_path / "settings.json"))
    assert result.returncode == 2
    assert "the settings document is not JSON" in result.stderr


@pytest.mark.parametrize(
    ("url", "code"),
    [("http://127.0.0.1:{port}", 3), ("ftp://gateway", 2), ("http://127.0.0.1:port", 2), ("http://[", 2)],
)
def test_a_url_without_a_gateway(verify, url, code):
    result = verify(PASSING, source=("--url", url.format(port=free_port())))
    assert result.returncode == code
    assert result.stderr
    assert "Traceback" not in result.stderr
    assert "Errno" not in result.stderr


@pytest.mark.parametrize("option", ["--expect", "--settings", "--junit"])
def test_a_missing_file_is_named_with_a_remedy(verify, tmp_path, option):
    """The last of the options counts. Failed cases have their own code, whatever becomes of the report."""
    missing = tmp_path / "none" / "file"
    result = verify(PASSING, option, missing)
    assert result.returncode == 2
    assert f"{missing}: no such file or directory. Check the path" in result.stderr
    assert "Errno" not in result.stderr
    assert verify(FAILING, "--junit", missing).returncode == 1
