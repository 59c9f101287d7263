"""The state of one decision: the user, what is known of them, and what the decision has done so far."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tornado_gateway.core.context import Context, Properties
from tornado_gateway.core.model import Impression, Settings
from tornado_gateway.core.webtests import parse_web_campaigns

if TYPE_CHECKING:
    from tornado_gateway.core.trace import Trace

Record = Mapping[str, Any]
StoredRecords = Mapping[str, Record | None]

# Before the first rule, `user` conditions see only a `_vwoUserId` that the caller passed (decision engine 2.6).
UNSET = object()


class Visit:
    """One user looking at one feature. Attributes that are rarely used are set when they are."""

    hidden: object = UNSET  # `_vwoUserId`: the value that the last evaluated rule left
    written: dict[str, Record] | None = None
    running_groups: tuple[str, ...] = ()
    sent = 0  # impressions that left before the end of the decision, which an abort does not take back
    _web_campaigns: dict[str, str] | None = None

    def __init__(
        self,
        settings: Settings,
        context: Context,
        stored: StoredRecords | None,
        trace: "Trace | None",
        impressions: list[Impression],
        writes: list[Record],
    ) -> None:
        self.settings = settings
        self.context = context
        user_id: str = context.user_id
        self.user_id = user_id
        self.properties: Properties | None = context.custom_variables
        seed = context.bucketing_seed
        self.bucketing_id = (seed if seed and seed.strip() else user_id).encode()
        self.stored = stored
        self.trace = trace
        self.impressions = impressions
        self.writes = writes
        self.not_in: list[Any] = []  # holdouts that go into the record as "not in"
        self.rollouts_passed: set[str] = set()

    def web_campaigns(self) -> dict[str, str]:
        """Return the caller's web testing campaigns: campaign id -> variation id."""
        if self._web_campaigns is None:
            self._web_campaigns = parse_web_campaigns(self.context.web_testing_campaigns)
        return self._web_campaigns
