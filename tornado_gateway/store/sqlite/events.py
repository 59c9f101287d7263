"""The embedded store: SQLite files in DATA_DIR.

`events-<n>.db` is the event log of one worker, held by a lock on `events-<n>.lock` for as long as the worker lives, so
that commits never wait for each other. A live worker adopts the log of a dead one. `state.db` and
`dead.db`, the events that upstream rejected, are shared by all workers of the machine.

WAL with synchronous=NORMAL loses nothing when the process dies; a power cut can lose the newest events.
synchronous=FULL (STORE_SYNC=full) calls fsync for each commit and loses nothing then either.
"""

import logging
import random
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import CLAIM_BYTES, Chunk, DeadLetters, Depth, NewChunk, Store
from tornado_gateway.store.sqlite import chunks as table
from tornado_gateway.store.sqlite import dead_letters as letters
from tornado_gateway.store.sqlite.adoption import Adoption
from tornado_gateway.store.sqlite.claims import ClaimMemory
from tornado_gateway.store.sqlite.database import Checkpoints, Database
from tornado_gateway.store.sqlite.deletions import PendingDeletions, Settled
from tornado_gateway.store.sqlite.repair.event_files import EventFiles
from tornado_gateway.store.sqlite.space import SHRINK_BYTES, DiskSpace, shrink
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

# A restart of the WAL delays commits by 3 to 5 ms, while the disk syncs, so it must be rare: with 4 MB, 1.5 % of the
# requests at 20,000/s waited for one.
WAL_BYTES = 64 * 1024 * 1024
LEAST_WAL_BYTES = 4 * 1024 * 1024  # of a log on a small disk, and of one of many: a WAL file does not shrink
WAL_SHARE = 512  # otherwise, at most this part of the file system
FRESH_BYTES = 8 * 1024 * 1024  # appended chunks that stay in memory until they are claimed; the others are read
SETTLE_SECONDS = 0.02  # deletions wait this long for the next append, to share its transaction
REPAIR_SECONDS = 0.5
RETRY_SECONDS = 1.0  # pause after delivered events could not be deleted
LETTERS_AT_ONCE = 100  # dead letters that move back in one transaction


def open_sqlite(directory: Path, sync: str = "normal", namespace: str = "") -> Store:
    """Return the embedded store in `directory`, which is created if it is missing. `sync` is a key of SYNC_MODES.

    `namespace` separates the shared state of environments. Event logs need none: each chunk names its environment.
    """
    return Store(SqliteEvents(directory, sync), SqliteState(directory, sync, namespace))


class SqliteEvents:
    """The event log of this worker.

    State about a job of the database's thread changes when the result of the job arrives, even if the caller has been
    cancelled, and never partly before and partly after an `await`.

    With `counts_all_letters` the dead letters of all logs in the directory count, not only those of this log. It looks
    after its files `pace` times as rarely as the log of one of few environments does.
    """

    def __init__(
        self,
        directory: Path,
        sync: str = "normal",
        *,
        fresh_bytes: int = FRESH_BYTES,
        wal_bytes: int = WAL_BYTES,
        settle_seconds: float = SETTLE_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        counts_all_letters: bool = False,
        pace: int = 1,
    ) -> None:
        self.failure: str | None = None
        self.lost = 0
        self.repairs = 0
        self.letters_version = 0
        self._former_log = ""
        self._counts_all_letters = counts_all_letters
        self._space = DiskSpace(directory)
        self._files = EventFiles(directory, sync, self._space, pace)
        self._database = Database()
        self._checkpoints = Checkpoints(self._database, wal_bytes)
        self._ids = table.Ids()
        self._memory = ClaimMemory(self._read, fresh_bytes)
        self._repair_watch = Periodic(self._tend, REPAIR_SECONDS * pace)
        self._deletions = PendingDeletions(self._database, self._space, settle_seconds, retry_seconds)
        self._adoption = Adoption(directory, self._database, self._space, self._ids, self._inserted)

    async def open(self) -> None:
        """Open the log, even if the disk is full: stored events can be delivered, and new ones are rejected."""
        guard, follower = self._files.lock()
        await self._database.open(guard)
        most_bytes = max(self._space.total() // WAL_SHARE, LEAST_WAL_BYTES)
        self._checkpoints.use(follower, most_bytes, self._files.wal_bytes)
        self._ids.last = await self._database.run(table.last_id)
        self._memory.restart(self._ids.last)
        try:
            await self.adopt()
        except StoreError as error:
            logger.error("the events of an ended worker could not be adopted, retrying: %s", error)
        await self._report_start()
        self.repairs, self._former_log = self._files.replaced, self._log
        self.letters_version = await self._database.run(letters.letters_version)  # what is read from now on is newer
        self._repair_watch.start(phase=random.random())

    async def _tend(self) -> None:
        """Store the chunks in memory again, under their ids, if a new file has replaced that of this log.

        Otherwise return unused disk space.
        """
        if self._files.replaced == self.repairs:
            with suppress(StoreError):
                self.letters_version = await self._database.run(_look_after, self._memory.is_empty)
            return
        replaced, log = self._files.replaced, self._log
        try:
            if events := await self._database.run(table.write_again, self._memory.all_chunks()):
                logger.error("%d events that were in memory are stored again in %s", events, log)
            await self._database.run(letters.adopt_dead_letters, self._former_log, log)
        except StoreError as error:
            logger.error("events in memory cannot be stored again yet: %s", error)
        else:
            self.repairs, self._former_log = replaced, log

    @property
    def _log(self) -> str:
        return self._files.log

    @property
    def _counted(self) -> str:
        """The log whose dead letters count."""
        return letters.ALL_LOGS if self._counts_all_letters else self._log

    async def _report_start(self) -> None:
        for schema in ("main", "letters"):
            await self._database.run(shrink, schema)
        self._space.keep_reserve()
        await self._database.run(self._space.check)
        waiting = (await self.depth()).waiting
        if self._space.problem is not None:
            logger.error("%s; %d events wait in %s", self._space.problem, waiting, self._log)
        elif waiting:
            logger.info("%d events of a previous run wait in %s", waiting, self._log)

    async def close(self) -> None:
        await self._repair_watch.end()
        await self._deletions.close()
        await self._checkpoints.close()
        await self._database.close()
        self._files.unlock()

    async def append(self, chunks: Sequence[NewChunk], seconds: float | None = None) -> None:
        """As promised by EventStore. Raise StoreError as well if the disk is nearly full."""
        settled = self._deletions.take_for_append()
        size = sum([len(chunk.body) for chunk in chunks])
        then = partial(self._appended, chunks, size, settled)
        await self._database.run(table.append, self._ids, self._space, chunks, size, settled.ids, then=then)

    def _appended(
        self, chunks: Sequence[NewChunk], size: int, settled: Settled, last: int, error: BaseException | None
    ) -> None:
        if error is not None:
            self._deletions.not_deleted(settled)
            return
        self._deletions.appended(settled)
        self._memory.keep(last - len(chunks), chunks, size)
        self._checkpoints.count(size)

    async def claim(self, max_events: int, max_bytes: int = CLAIM_BYTES) -> list[Chunk]:
        return await self._memory.claim(max_events, max_bytes)

    async def _read(self, last: int, max_events: int, needs_one: bool) -> tuple[list[Chunk], int]:
        return await self._database.run(table.read_after, self._ids, last, max_events, needs_one)

    async def release(self, chunks: Sequence[Chunk]) -> None:
        self._memory.release(chunks)

    def drop_bodies(self, chunks: Sequence[Chunk]) -> None:
        self._memory.drop_bodies(chunks)

    async def settle(
        self, chunks: Sequence[Chunk], dead: Sequence[tuple[NewChunk, str]] = (), remaining: Sequence[NewChunk] = ()
    ) -> None:
        """As promised by EventStore. Deletions alone wait for the next append, if that comes soon."""
        ids = [int(chunk.id) for chunk in chunks]
        if dead or remaining:
            job = (self._ids, self._space, self._log, ids, dead, remaining)
            await self._database.run(table.settle, *job, then=self._inserted)
        self._memory.forget(ids)
        if ids and not (dead or remaining):
            self._deletions.add(ids, sum([chunk.count for chunk in chunks]))

    def _inserted(self, _: object, error: BaseException | None) -> None:
        """Make the next claim read. Even a job that failed may have inserted chunks."""
        self._memory.note_stored(self._ids.last)

    async def depth(self, *, patient: bool = False) -> Depth:
        """As promised by EventStore; dead events are those that this log counts.

        Settled chunks do not count although some are in the file. The result is exact at the moment at which the caller
        continues: deletions count as soon as they are known, and settlements until then.
        """
        deleted: list[int] = []

        def note(_: object, error: BaseException | None) -> None:
            deleted.append(self._deletions.deleted_events)

        stored = await self._database.run(table.depth, self._counted, self._deletions.ids, then=note)
        waiting = stored.waiting + deleted[0] - self._deletions.settled_events
        return Depth(waiting, stored.dead, stored.oldest_at if waiting else None, stored.waiting_bytes)

    async def dead_letters(self, limit: int = 100, first: int | str | None = None) -> DeadLetters:
        return DeadLetters(await self._database.run(letters.dead_letters, limit, first))

    async def requeue(self, ids: Sequence[int | str] | None = None, max_events: int | None = None) -> int:
        """As promised by EventStore, for the letters of all workers. Two that do this at once may send some twice."""
        chosen = await self._database.run(letters.choose_letters, ids, max_events)
        moved = 0
        for first in range(0, len(chosen), LETTERS_AT_ONCE):
            page = chosen[first : first + LETTERS_AT_ONCE]
            try:
                moved += await self._database.run(table.requeue, self._ids, self._space, page, then=self._inserted)
            except StoreError as error:
                if not moved:
                    raise
                logger.error("requeued %d dead events, the others stay dead: %s", moved, error)
                break
        return moved

    async def requeue_edited(self, id_: int | str, body: bytes) -> int:
        if not isinstance(id_, int):
            return 0
        return await self._database.run(table.requeue_edited, self._ids, self._space, id_, body, then=self._inserted)

    async def discard_dead_letters(self, ids: Sequence[int | str]) -> int:
        """As promised by EventStore, in portions."""
        discarded = 0
        for first in range(0, len(ids), LETTERS_AT_ONCE):
            discarded += await self._database.run(letters.delete_letters, ids[first : first + LETTERS_AT_ONCE])
        return discarded

    async def expire_dead_letters(self, before: float) -> int:
        discarded = 0
        while expired := await self._database.run(letters.expired_letters, self._counted, before, LETTERS_AT_ONCE):
            discarded += await self._database.run(letters.delete_letters, expired)
        return discarded

    async def trim_dead_letters(self, max_events: int) -> int:
        return await self._database.run(letters.trim_dead_letters, self._counted, max_events)

    async def adopt(self) -> int:
        """Move the contents of the logs of dead workers into this one. Return the number of events moved."""
        return await self._adoption.adopt(self._log)


def _look_after(connection: sqlite3.Connection, is_empty: bool) -> int:
    """Return `letters_version`. If no event waits, return the disk space of those that were delivered."""
    version = letters.letters_version(connection)
    if is_empty:
        shrink(connection, "main", SHRINK_BYTES)
    return version
