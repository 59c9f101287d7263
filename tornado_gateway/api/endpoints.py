"""The endpoints by the names that the table of `routes` has for them."""

from typing import NamedTuple

from tornado_gateway.api.aliases import AliasesApi
from tornado_gateway.api.events import EventsApi
from tornado_gateway.api.flags import FlagsApi
from tornado_gateway.api.lists import ListsApi
from tornado_gateway.api.ofrep.bulk import BulkApi
from tornado_gateway.api.ofrep.evaluation import EvaluationApi
from tornado_gateway.api.ofrep.exposures import ExposuresApi
from tornado_gateway.api.settings import SettingsApi
from tornado_gateway.api.streams import StreamsApi
from tornado_gateway.api.visitors import VisitorsApi


class Endpoints(NamedTuple):
    """The endpoints that routes name."""

    flags: FlagsApi
    events: EventsApi
    settings: SettingsApi
    visitors: VisitorsApi
    lists: ListsApi
    aliases: AliasesApi
    bulk: BulkApi
    evaluation: EvaluationApi
    exposures: ExposuresApi
    streams: StreamsApi
