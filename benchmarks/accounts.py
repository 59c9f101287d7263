"""Settings documents to measure with."""

from typing import Any

ACCOUNT_ID, SDK_KEY = 123456, "benchmark-key-0123456789abcdef00"


def variables(text: str) -> list[dict[str, Any]]:
    return [{"id": 1, "type": "string", "key": "title", "value": text}]


def feature(number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A feature with a rollout to everybody and an A/B rule for a segment by custom variable, and their campaigns."""
    rollout, test, key = 1000 + 2 * number, 1001 + 2 * number, f"feature-{number}"
    segment = {"or": [{"custom_variable": {"plan": "gold"}}, {"custom_variable": {"plan": "wildcard(*silver*)"}}]}
    campaigns = [
        {
            "id": rollout,
            "type": "FLAG_ROLLOUT",
            "key": f"{key}_rollout",
            "name": "Rollout",
            "status": "RUNNING",
            "segments": {},
            "variations": [{"id": 1, "name": "Rollout", "weight": 100, "segments": {}, "variables": variables("on")}],
        },
        {
            "id": test,
            "type": "FLAG_TESTING",
            "key": f"{key}_test",
            "name": "Test",
            "status": "RUNNING",
            "percentTraffic": 100,
            "segments": segment,
            "variations": [
                {"id": 1, "name": "Control", "weight": 50, "segments": {}, "variables": variables("control")},
                {"id": 2, "name": "Variation", "weight": 50, "segments": {}, "variables": variables("variation")},
            ],
        },
    ]
    document = {
        "id": number + 1,
        "key": key,
        "name": key,
        "status": "ON",
        "type": "FEATURE_FLAG",
        "metrics": [{"id": 1, "type": "CUSTOM_GOAL", "identifier": "purchase"}],
        "rules": [
            {"type": "FLAG_ROLLOUT", "ruleKey": "rollout", "campaignId": rollout, "variationId": 1},
            {"type": "FLAG_TESTING", "ruleKey": "test", "campaignId": test},
        ],
    }
    return document, campaigns


def account(features: int) -> dict[str, Any]:
    pairs = [feature(number) for number in range(features)]
    return {
        "version": 1,
        "accountId": ACCOUNT_ID,
        "sdkKey": SDK_KEY,
        "features": [document for document, _ in pairs],
        "campaigns": [campaign for _, campaigns in pairs for campaign in campaigns],
    }
