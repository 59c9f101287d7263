"""The experiments of one environment: merged with those of other workers in the store, tested, and reported."""

import asyncio
import gc
import logging
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson

from tornado_gateway import core
from tornado_gateway.errors import StoreError
from tornado_gateway.experiments.campaigns import MOST_EXPERIMENTS
from tornado_gateway.experiments.exposures import Audience, Exposures
from tornado_gateway.experiments.features import FeatureCounts, FeatureNews, merge, unknown_keys, usage_of
from tornado_gateway.experiments.ratio import ALARM_P, LEAST_VISITORS
from tornado_gateway.experiments.report import is_mismatched, report_of, sentence_of
from tornado_gateway.experiments.sample import VisitorSample, pack, unpack
from tornado_gateway.logs import ThrottledLog, once
from tornado_gateway.store.interfaces import StateStore
from tornado_gateway.tasks import PAUSE_SECONDS, Periodic, end_tasks, in_turns

logger = logging.getLogger(__name__)

MERGE_SECONDS = 5.0
MOST_MERGED = 8  # samples in one round: each takes 0.8 ms of CPU
MOST_FOR_REPORT = 32  # 1.3 MB are written at most
FORGET_SECONDS = 3_600.0  # after an experiment was removed or changed, so that a setting can be taken back
STOP_SECONDS = 2.0
ATTEMPTS = 8
FEATURES = "features"  # the name of their record

Json = dict[str, Any]


class ExperimentMonitor:
    """Samples and counts of one environment.

    At most `most_merged` samples are merged at a time, of one among many environments `pace` times as rarely.
    """

    def __init__(
        self,
        state: StateStore,
        *,
        most_experiments: int = MOST_EXPERIMENTS,
        merge_seconds: float = MERGE_SECONDS,
        forget_seconds: float = FORGET_SECONDS,
        most_merged: int = MOST_MERGED,
        pace: int = 1,
    ) -> None:
        self.features = FeatureCounts()
        self.exposures = Exposures(self.features, most_experiments)
        self._mismatches: dict[str, str] = {}  # sentences, by the name of the sample
        self._state = state
        self._record: Json = {}  # of the features, as it was last read
        self._record_version = 0
        self._known: Sequence[str] = ()  # features of the settings
        self._following: asyncio.Task[None] | None = None
        self._turn = 0  # the audience that is merged next
        self._forget_seconds = forget_seconds
        self._absent: dict[str, float] = {}  # since when the settings lack the experiment of a sample
        self._merging = asyncio.Lock()
        self._log = ThrottledLog(logger, condition="samples")
        self._timer = Periodic(partial(self._merge_regularly, most_merged), merge_seconds * pace, jitter=0.2)

    def settings_changed(self, settings: core.Settings) -> None:
        """Follow new settings, in steps between which requests are served."""
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.get_running_loop().create_task(self.follow(settings))

    async def follow(self, settings: core.Settings) -> None:
        """Follow new settings."""
        self._known = list(settings.features)
        self.features.use(settings)
        await asyncio.sleep(PAUSE_SECONDS)
        for _ in self.exposures.follow(settings):  # 200 steps for 10,000 features, 0.1 s of work
            await asyncio.sleep(PAUSE_SECONDS)
        # The tables have no cycles. The collection before the next compilation would block the loop while it searches
        # them: 22 ms for 10,000 features.
        gc.freeze()

    def start(self) -> None:
        self._timer.start(phase=random.random())

    async def stop(self) -> None:
        """Stop, and merge once more."""
        await end_tasks(self._following)
        await self._timer.end()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.merge()
        except (StoreError, TimeoutError) as error:
            extra = once("samples at the end")
            reason = str(error) or "too slow"
            logger.warning("the samples of experiments were not stored at the end: %s", reason, extra=extra)

    # --- Merging ---

    async def _merge_regularly(self, most: int) -> None:
        try:
            await self.merge(most)
        except StoreError as error:
            self._log.warning("failed", "the samples of experiments were not stored, retrying: %s", error)

    async def merge(self, most: int | None = None) -> None:
        """Exchange the samples with those in the store, at most so many that have changed. Raise StoreError."""
        self.exposures.fold()  # first: reports show these also if the store fails
        async with self._merging:
            versions = await self._state.statistics_versions()
            await self._merge_features(versions.get(FEATURES, 0))
            for audience in self._next_audiences(versions, most):
                name = audience.experiment.sample
                await self._merge_sample(audience.opened(), name, versions.get(name, 0))
                self._check(audience)
            await self._forget(versions)

    def _check(self, audience: Audience) -> None:
        name = audience.experiment.sample
        self._mismatches.pop(name, None)
        if is_mismatched(audience):
            self._mismatches[name] = sentence_of(report_of(audience))

    @property
    def mismatches(self) -> list[str]:
        """The sentences about experiments with wrong shares."""
        if not self._mismatches:  # as nearly always: asked several times a second, in each environment
            return []
        return [
            self._mismatches[audience.experiment.sample]
            for audience in self.exposures.audiences
            if audience.experiment.sample in self._mismatches
        ]

    def _next_audiences(self, versions: dict[str, int], most: int | None) -> list[Audience]:
        """Return the audiences that differ from their records, beginning with those that had to wait."""
        audiences = self.exposures.audiences
        start = self._turn % len(audiences) if audiences else 0
        changed = [
            place
            for place in (*range(start, len(audiences)), *range(start))
            if _differs(audiences[place], versions.get(audiences[place].experiment.sample, 0))
        ][:most]
        self._turn = changed[-1] + 1 if changed else 0
        return [audiences[place] for place in changed]

    async def _merge_sample(self, sample: VisitorSample, name: str, version: int) -> None:
        for _ in range(ATTEMPTS):
            if version != sample.version:
                stored = await self._state.load_statistics(name)
                sample.merge(unpack(stored.body) or VisitorSample())
                sample.version = stored.version
            if not sample.has_news or await self._store_sample(sample, name):
                return
            version = -1  # another worker was faster

    async def _store_sample(self, sample: VisitorSample, name: str) -> bool:
        """Store the sample as the next version. Return False if another worker has stored one."""
        sample.has_news = False  # before the copy: visitors that are added meanwhile are news again
        is_stored = False
        try:
            body = await asyncio.to_thread(pack, sample.raw())
            is_stored = await self._state.replace_statistics(name, body, sample.version)
        finally:
            sample.has_news = sample.has_news or not is_stored
        sample.version += is_stored
        return is_stored

    async def _merge_features(self, version: int) -> None:
        news = self.features.take()
        if news is None:
            if version != self._record_version:
                await self._load_record()
            return
        is_stored = False
        try:
            is_stored = await self._store_features(news, version)
        finally:
            if not is_stored:
                self.features.put_back(news)

    async def _store_features(self, news: FeatureNews, version: int) -> bool:
        for _ in range(ATTEMPTS):
            if version != self._record_version:
                await self._load_record()
            record = await in_turns(merge(self._record, news, self._known, time.time()))
            if await self._state.replace_statistics(FEATURES, orjson.dumps(record), self._record_version):
                self._record, self._record_version = record, self._record_version + 1
                return True
            version = -1  # another worker was faster
        return False

    async def _load_record(self) -> None:
        stored = await self._state.load_statistics(FEATURES)
        self._record = orjson.loads(stored.body) if stored.version else {}
        self._record_version = stored.version

    async def _forget(self, versions: dict[str, int]) -> None:
        """Delete the samples of experiments that the settings have not had for a while."""
        known = {FEATURES, *(audience.experiment.sample for audience in self.exposures.audiences)}
        now = time.monotonic()
        self._absent = {name: self._absent.get(name, now) for name in versions if name not in known}
        old = [name for name, since in self._absent.items() if now - since >= self._forget_seconds]
        if self._known and old:
            await self._state.forget_statistics(old)

    # --- Results ---

    async def report(self) -> Json:
        """Return the report of each experiment, with the numbers that other workers have stored by now.

        `unreadable` is the reason why those are missing, if the store does not respond.
        """
        reports: list[Json] = []
        unreadable = None
        try:
            await self.merge(MOST_FOR_REPORT)
        except StoreError as error:
            unreadable = str(error)
        for audience in self.exposures.audiences:
            reports.append(report_of(audience))
            await asyncio.sleep(0)  # each takes half a millisecond
        return {"limits": {"p": ALARM_P, "visitors": LEAST_VISITORS}, "experiments": reports, "unreadable": unreadable}

    def usage(self) -> dict[str, Json]:
        """Return the use of each feature of the settings."""
        now = time.time()
        return {key: usage_of(self._record, key, now) for key in self._known}

    def usage_report(self) -> Json:
        """Return the use of each feature, and the requested keys that no feature has."""
        return {"features": self.usage(), "unknown_keys": unknown_keys(self._record)}


def _differs(audience: Audience, version: int) -> bool:
    sample = audience.sample
    return version != 0 if sample is None else sample.has_news or sample.version != version
