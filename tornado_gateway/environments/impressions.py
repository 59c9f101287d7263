"""Recording the impressions of decisions."""

from tornado_gateway.environments.environment import Environment
from tornado_gateway.gate import Gate
from tornado_gateway.http.messages import Request


def append_impressions(environment: Environment, request: Request, documents: bytes, count: int) -> Gate | None:
    """Accept the events of decisions. The response waits until they are stored, if EVENT_ACK says so.

    Return their gate; None if they cannot be accepted now, which concerns no decision (EVENT_QUEUE_FULL).
    """
    events = environment.events
    gate = events.append_impressions(documents, count)
    if events.durable:
        request.gate = gate
    return gate
