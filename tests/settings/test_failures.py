"""Failed refreshes: their reasons in words."""

import pytest

from tornado_gateway import core
from tornado_gateway.errors import UpstreamError
from tornado_gateway.settings.failures import describe_failure


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UpstreamError("settings: upstream answered 403 Forbidden", 403), "VWO rejected the SDK key (403)."),
        (UpstreamError("settings: upstream answered 503 x", 503), "VWO returned 503 Service Unavailable."),
        (UpstreamError("settings: upstream answered 799 x", 799), "VWO returned 799."),
        (
            UpstreamError("settings: x", cause="Operation timed out after 1000 milliseconds with 0 bytes received"),
            "VWO could not be reached (Operation timed out).",
        ),
        (core.SettingsError(("features: expected a list",)), "The settings cannot be used: features: expected a list."),
        (FileNotFoundError(2, "No such file", "s.json"), "The settings could not be read: [Errno 2] No such file: "),
    ],
    ids=["key", "status", "unknown status", "time-out", "document", "file"],
)
def test_the_reason_of_a_failure_is_a_sentence(error, reason):
    """Row H5."""
    assert describe_failure(error).startswith(reason)
