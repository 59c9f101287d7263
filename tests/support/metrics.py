"""GET /metrics as tests read it."""

import http.client

from prometheus_client.parser import text_string_to_metric_families

DONE = (
    "fme_events_delivered_total",
    "fme_events_waiting",
    "fme_events_dead",
    "fme_events_rejected_total",
    "fme_events_discarded_total",
    "fme_events_lost_total",
    "fme_events_unknown",
)


def scrape(gateway, accept="text/plain"):
    """Body and type, over a connection of its own, so that any worker may answer."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200, body
        return body, response.headers["Content-Type"]
    finally:
        connection.close()


def samples_of(text):
    """Every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def is_cumulative(name):
    return name.endswith(("_total", "_bucket", "_count", "_sum"))


def assert_adds_up(samples):
    parts = {name: samples[name, ()] for name in DONE}
    received = samples["fme_events_received_total", ()] + samples["fme_events_elsewhere", ()]
    assert received == sum(parts.values()), parts
