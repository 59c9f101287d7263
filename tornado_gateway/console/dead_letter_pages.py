"""The pages below /admin/events that concern dead letters: groups, export, requeue, edit, discard."""

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from tornado_gateway.console.admin_pages import AdminPage, Operated
from tornado_gateway.console.dead_letters import GroupKey, all_letters, edited_body, exported, groups_of
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.http.fields import Fields

logger = logging.getLogger(__name__)

Id = int | str

EXPECTED_IDS = "ids: expected a list of ids of dead letters, or null for all; or event and reason of a group"
EXPECTED_GROUP = "event and reason: expected the texts of a group"
FLUSHED_BYTES = 64 * 1024  # of an export, before the client has to take them


class DeadLetterPage(AdminPage):
    """A page about the dead letters of one environment."""

    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    def operated(self) -> Operated:
        return self._admin.environment(self.environment())

    async def chosen(self, fields: Fields) -> Sequence[Id] | None:
        """Return the ids that a body names, by itself or by a group; None for all letters."""
        if "event" in fields or "reason" in fields:
            group = _group(fields.get("event"), fields.get("reason"))
            return [letter.id async for letter in all_letters(self.operated().store, group)]
        ids = fields.get("ids", ...)  # a misspelt name must not mean all of them
        if ids is not None and not (isinstance(ids, list) and all(type(id_) in (int, str) for id_ in ids)):
            raise RequestError(400, EXPECTED_IDS)
        return ids


def _group(event: object, reason: object) -> GroupKey:
    if not isinstance(event, str) or not isinstance(reason, str):
        raise RequestError(400, EXPECTED_GROUP)
    return GroupKey(event, reason)


class RequeuePage(DeadLetterPage):
    async def post(self) -> None:
        await self.respond(self._requeue())

    async def _requeue(self) -> Mapping[str, Any]:
        ids = await self.chosen(self.fields())
        return {"requeued": await self.operated().queue.requeue(ids)}


class DiscardPage(DeadLetterPage):
    async def post(self) -> None:
        await self.respond(self._discard())

    async def _discard(self) -> Mapping[str, Any]:
        ids, operated = await self.chosen(self.fields()), self.operated()
        if ids is None:
            ids = [letter.id async for letter in all_letters(operated.store)]
        discarded = await operated.queue.discard(ids)
        if discarded:
            logger.error("%d dead letters were deleted by %s", discarded, self.user())
        return {"discarded": discarded}


class EditPage(DeadLetterPage):
    async def post(self) -> None:
        await self.respond(self._edit())

    async def _edit(self) -> Mapping[str, Any]:
        fields, operated = self.fields(), self.operated()
        id_ = fields.get("id")
        if not isinstance(id_, int | str) or isinstance(id_, bool):
            raise RequestError(400, "id: expected the id of a dead letter")
        body = await edited_body(operated.store, id_, fields.get("event"))
        moved = await operated.queue.requeue_edited(id_, body)
        if not moved:
            raise RequestError(404, f"there is no dead letter {id_!s:.50}")
        logger.error("%d dead letter was edited and requeued by %s", moved, self.user())
        return {"requeued": moved}


class GroupsPage(DeadLetterPage):
    METHODS: ClassVar[tuple[str, ...]] = ("GET",)

    async def get(self) -> None:
        await self.respond(self._groups())

    async def _groups(self) -> Mapping[str, Any]:
        return await groups_of(self.operated().store)


class ExportPage(DeadLetterPage):
    """JSON lines, written portion by portion, only as fast as the client reads."""

    METHODS: ClassVar[tuple[str, ...]] = ("GET",)

    async def get(self) -> None:
        try:
            shows_keys = self._shows_keys()
            async with aclosing(self._portions(shows_keys=shows_keys)) as portions:
                async for portion in portions:
                    self._begin()
                    self.write(portion)
                    await self.flush()
            self._begin()
        except RequestError as error:
            self.reject(error)
        except StoreError as error:
            if self._headers_written:
                raise  # which closes the connection: an export must not look complete if it is not
            self.reject_for_store(error)

    def _shows_keys(self) -> bool:
        keys = self.get_query_argument("keys", "masked")
        if keys not in ("shown", "masked"):
            raise RequestError(400, "keys: expected shown or masked")
        return keys == "shown"

    def _begin(self) -> None:
        if not self._headers_written:
            self.set_header("Content-Type", "application/x-ndjson; charset=utf-8")
            self.set_header("Content-Disposition", 'attachment; filename="dead-letters.jsonl"')

    async def _portions(self, *, shows_keys: bool) -> AsyncGenerator[bytes, None]:
        event, reason = self.get_query_argument("event", None), self.get_query_argument("reason", None)
        group = None if event is None and reason is None else _group(event, reason)
        lines: list[bytes] = []
        async for letter in all_letters(self.operated().store, group):
            lines.append(exported(letter, shows_keys=shows_keys))
            if sum(map(len, lines)) > FLUSHED_BYTES:
                yield b"".join(lines)
                lines.clear()
        yield b"".join(lines)
