"""The pages below /admin/settings: the versions of the settings, their differences, and the pin."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from tornado_gateway.console.admin_pages import AdminPage
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import Fields
from tornado_gateway.settings.history import SettingsHistory


class SettingsPage(AdminPage):
    """A page about the versions of one environment."""

    def history(self) -> SettingsHistory:
        return self._admin.environment(self.environment()).history


class VersionsPage(SettingsPage):
    async def get(self) -> None:
        await self.respond(self._versions())

    async def _versions(self) -> Mapping[str, Any]:
        return (await self.history().kept()).listing()


class DifferencesPage(SettingsPage):
    async def get(self) -> None:
        await self.respond(self._differences())

    async def _differences(self) -> Mapping[str, Any]:
        history = self.history()
        kept = await history.kept()
        before = kept.find(self.get_query_argument("from", "previous"))
        after = kept.find(self.get_query_argument("to", "current"))
        changes = await history.differences(before, after)
        shown = [{"subject": change.subject, "texts": change.texts} for change in changes]
        return {"from": before.digest, "to": after.digest, "changes": shown}


class PinPage(SettingsPage):
    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    async def post(self) -> None:
        await self.respond(self._pin())

    async def _pin(self) -> Mapping[str, Any]:
        fields = self.fields()
        pin = await self.history().pin(_version(fields), self.user(), _reason(fields), _seconds(fields))
        return {"pinned": pin.digest, "until": pin.until}


class UnpinPage(SettingsPage):
    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    async def post(self) -> None:
        await self.respond(self._unpin())

    async def _unpin(self) -> Mapping[str, Any]:
        self.fields()
        return {"unpinned": (await self.history().unpin(self.user())).digest}


def _version(fields: Fields) -> str:
    version = fields.get("version")
    if isinstance(version, bool) or not isinstance(version, (str, int)):
        raise RequestError(400, "version: expected a number or a digest of the list")
    return str(version)


def _reason(fields: Fields) -> str:
    reason = fields.get("reason", "")
    if not isinstance(reason, str):
        raise RequestError(400, "reason: expected a text")
    return reason


def _seconds(fields: Fields) -> float | None:
    seconds = fields.get("seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise RequestError(400, "seconds: expected a number, or null for no end")
    return float(seconds)
