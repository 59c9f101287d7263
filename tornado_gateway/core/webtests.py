"""Web testing campaigns that the visitor is part of, for `campaignVariation` conditions (decision engine 4.8)."""

import json
import re
from collections.abc import Callable, Mapping

Campaigns = Mapping[str, str]
Condition = Callable[[Campaigns], bool]


def parse_web_campaigns(value: object) -> dict[str, str]:
    """Return campaign id -> variation id from an object or its JSON text; anything else is an empty map."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    if not isinstance(value, Mapping):
        return {}
    return {str(key): str(item) for key, item in value.items() if item is not None and str(key)}


def campaign_condition(operand: object) -> Condition:
    """Compile `C`, `C_V`, `C_!V` or `!C`; other operands are never true."""
    text = _operand_text(operand)
    for form, build in _FORMS:
        if found := form.fullmatch(text):
            return build(*found.groups())
    return lambda campaigns: False


def _operand_text(operand: object) -> str:
    if isinstance(operand, bool) or not isinstance(operand, str | int | float):
        return ""
    if isinstance(operand, float) and operand.is_integer():
        operand = int(operand)
    return str(operand).strip()


def _in_campaign(campaign: str) -> Condition:
    return lambda campaigns: campaign in campaigns


def _in_variation(campaign: str, variation: str) -> Condition:
    return lambda campaigns: campaigns.get(campaign) == variation


def _in_other_variation(campaign: str, variation: str) -> Condition:
    return lambda campaigns: campaign in campaigns and campaigns[campaign] != variation


def _not_in_campaign(campaign: str) -> Condition:
    return lambda campaigns: campaign not in campaigns


_FORMS: tuple[tuple[re.Pattern[str], Callable[..., Condition]], ...] = (
    (re.compile(r"(\d+)"), _in_campaign),
    (re.compile(r"(\d+)_(\d+)"), _in_variation),
    (re.compile(r"(\d+)_!(\d+)"), _in_other_variation),
    (re.compile(r"!(\d+)"), _not_in_campaign),
)
