"""The store on disk: one writer thread that owns the SQLite connection and commits in groups.

The loop submits; the thread takes everything that is queued into one transaction, commits, and hands all answers back to
the loop in one call, in the order of submission. So the price of an fsync is shared by what arrived while the last one ran.

A failed commit is *undecided*: its rows can come back after a crash, because what reached the log may be whole. Nothing is
answered then. The thread repeats a small transaction until one commits, which overwrites what the failed one left in the
log; only then the operations of the failed transaction, and all queued behind it by then, are answered with `StoreFailed`.
Operations that only read are answered meanwhile, out of turn: what is held can be delivered while nothing can be stored.

An operation that meets damage is tried again with new indexes and then with a new file of all that can be read: what is
lost with the rest is a damaged message like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeAlias, TypeVar

from rondevud import failpoints
from rondevud.errors import StoreError, StoreFailed
from rondevud.records import Operation
from rondevud.store.base import Done, Limits
from rondevud.store.database import aside, connect, failure, is_damage, open_database, primary_code
from rondevud.store.marks import Marks
from rondevud.store.salvage import rebuild
from rondevud.store.tables import READS, SqlTables
from rondevud.store.upkeep import Upkeep

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

COMMIT_OPERATIONS = 1_000
"""Operations that one commit takes at most."""

COMMIT_BYTES = 8 * 1024 * 1024
"""Payload bytes after which a transaction takes no further operation."""

IDLE_CHECKPOINT = 3 * 1024 * 1024
"""Bytes of the log from which on it is checkpointed when nothing is queued: before it outgrows `RESERVED`."""

BUSY_CHECKPOINT = 15 * 1024 * 1024
"""The same whatever is queued: before it outgrows `WAL_KEPT`."""

RESERVING_COMMITS = 16
"""Commits after which the log gets the room that one in use has."""

TRUNCATING_CHECKPOINT = 64 * 1024 * 1024
"""Bytes of the log from which on it is checkpointed and cut: a reader kept it from beginning anew."""

GARBAGE_COMMITS = 16
"""Under load, rows of deleted channels are removed a slice after every so many commits."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0
"""Seconds before the first and between later attempts to recover from a failed commit."""

REBUILD_RETRY = 60.0
"""Seconds after an attempt to make a new file that failed (no room) before the next one."""

CLOSE_TIMEOUT = 30.0
"""Seconds that `close` waits for the writer."""

_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        None,  # an OperationalError without a code
    }
)


class _Job(NamedTuple):
    operation: Operation[Any]
    done: Done[Any] | None


_Answer: TypeAlias = tuple[Done[Any] | None, Any]


class _Blamed(Exception):
    """One operation made the transaction impossible; the others can do without it."""

    def __init__(self, index: int, cause: Exception) -> None:
        super().__init__(index, cause)
        self.index = index
        self.cause = cause


class SqliteStore:
    """A `rondevud.store.base.Store` in one file. Make it with `open`; all methods belong to the loop's thread.

    The queue of operations has no bound of its own: who submits waits for answers, and bounds what it leaves unanswered.
    """

    def __init__(
        self,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        factory: type[sqlite3.Connection],
        pause: float,
    ) -> None:
        self.path = path
        self.moved_aside: Path | None = None
        """Where a damaged database was moved to by `open`."""
        self._loop = loop
        self._limits = limits
        self._factory = factory
        self._pause = pause
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._failing: StoreFailed | None = None
        self._busy = False
        self._pulse = time.monotonic()
        self._closing = threading.Event()
        self._ended = False  # the thread has ended: set in the loop's thread
        self._opened: asyncio.Future[None] = loop.create_future()
        self._finished = asyncio.Event()
        self._broken = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        # Of the thread alone:
        self._stop = False
        self._held: _Job | None = None
        self._commits = 0
        self._reindexed = self._rebuilt = False
        self._next_rebuild = 0.0
        self._complained = False  # whether a failure was told, and no commit has succeeded since
        self._connection: sqlite3.Connection
        self._marks: Marks
        self._tables: SqlTables
        self._upkeep: Upkeep

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        limits: Limits | None = None,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
        pause: float = FIRST_PAUSE,
    ) -> SqliteStore:
        """Open or make the file and start the writer. Raises `StoreError`.

        A file that SQLite refuses is moved aside, see `moved_aside`. `factory` makes the connection and `pause` is the
        first pause after a failed commit, both for tests.
        """
        store = cls(path, asyncio.get_running_loop(), limits or Limits(), factory, pause)
        store._thread.start()
        await store._opened
        return store

    @property
    def failing(self) -> StoreFailed | None:
        return self._failing

    def submit(self, operation: Operation[Result], done: Done[Result] | None = None) -> None:
        """See `rondevud.store.base.Store`."""
        if self._closing.is_set() or self._ended:
            self._loop.call_soon(self._answer, [(done, StoreFailed("the store is closed"))])
            return
        if not self._busy and self._queue.empty():
            self._pulse = time.monotonic()
        self._queue.put(_Job(operation, done))

    async def execute(self, operation: Operation[Result]) -> Result:
        """See `rondevud.store.base.Store`."""
        answer: asyncio.Future[Result] = self._loop.create_future()

        def done(result: Result | StoreError) -> None:
            if answer.done():
                return
            if isinstance(result, StoreError):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self.submit(operation, done)
        return await answer

    def alive(self) -> float:
        """Seconds since the writer last showed life while it has work; 0.0 without work, infinite when it died."""
        if self._ended and not self._closing.is_set():
            return float("inf")
        if not self._busy and self._queue.empty():
            return 0.0
        return time.monotonic() - self._pulse

    async def broken(self) -> None:
        """Wait for what never should be: the writer has died, or somebody could not take an answer of the store.

        Nothing can be stored from then on, or what that somebody knows is not what is stored.
        """
        await self._broken.wait()

    async def close(self) -> None:
        """Commit everything submitted and close the file; idempotent.

        While commits fail, what is undecided is answered with `StoreFailed` although it may come back at the next start.
        Gives up after `CLOSE_TIMEOUT` (a disk that hangs), leaving the thread to the end of the process.
        """
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._finished.wait()
        except TimeoutError:
            logger.error("the store did not finish within %s seconds", CLOSE_TIMEOUT)  # noqa: TRY400
            return
        self._thread.join()

    # --- in the loop's thread, called by the writer ----------------------------------------------------------------

    def _answer(self, answers: list[_Answer]) -> None:
        for done, result in answers:
            if done is None:
                if isinstance(result, StoreError):
                    logger.warning("an operation nobody waits for failed: %s", result)
                continue
            try:
                done(result)
            except Exception as error:  # noqa: BLE001 - one callback's error must not withhold the others' answers
                self._loop.call_exception_handler({"message": "a store callback failed", "exception": error})
                self._broken.set()

    def _recover(self, answers: list[_Answer]) -> None:
        self._failing = None
        self._answer(answers)

    def _end(self, answers: list[_Answer]) -> None:
        self._ended = True
        if not self._closing.is_set():
            self._broken.set()
        self._answer(answers)
        self._finished.set()

    def _settle_open(self, error: StoreError | None) -> None:
        if self._opened.done():
            return
        if error is None:
            self._opened.set_result(None)
        else:
            self._opened.set_exception(error)

    # --- in the writer's thread ------------------------------------------------------------------------------------

    def _call(self, function: Callable[[Any], None], argument: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function, argument)

    def _live(self) -> None:
        self._pulse = time.monotonic()

    def _run(self) -> None:
        try:
            self._connection, self.moved_aside = open_database(self.path, self._factory)
        except Exception as error:  # noqa: BLE001 - whatever it is, `open` must not wait for ever
            wrapped = error if isinstance(error, StoreError) else StoreError(f"cannot open {self.path}: {error!r}")
            self._call(self._settle_open, wrapped)
            self._call(self._end, [])
            return
        self._marks = Marks(self.path)
        self._use_connection()
        self._call(self._settle_open, None)
        try:
            self._work()
        except Exception as error:
            logger.exception("the store's writer died")
            self._failing = failure(error)
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._upkeep.close()
            self._marks.close()
            self._call(self._end, self._drain(StoreFailed("the store has ended")))

    def _use_connection(self) -> None:
        self._tables = SqlTables(self._connection, self._limits, self._marks)
        if self._reindexed:
            self._tables.trust()
        self._upkeep = Upkeep(self.path, self._connection, self._tables, self._live)

    def _work(self) -> None:
        while not self._stop:
            job, self._held = self._held or self._queue.get(), None
            if job is None:
                break
            self._busy = True
            self._pulse = time.monotonic()
            self._commit_group(job)
            self._tidy()
            self._busy = False
        if self._failing is None:
            self._upkeep.checkpoint("TRUNCATE")

    def _next(self) -> _Job | None:
        """The next job if one is queued."""
        if self._stop:
            return None
        try:
            job = self._queue.get_nowait()
        except Empty:
            return None
        self._stop = job is None
        return job

    def _commit_group(self, first: _Job) -> None:
        """Carry out `first` and what is queued behind it in one transaction, and answer."""
        jobs = [first]
        refused: dict[int, StoreError] = {}
        while True:
            try:
                answers = self._transact(jobs, refused)
                break
            except _Blamed as blamed:
                self._upkeep.roll_back()
                if self._heal(blamed.cause):
                    continue
                refused[blamed.index] = self._refuse(jobs[blamed.index], blamed.cause)
            except Exception as error:  # noqa: BLE001 - a commit that failed, or what never should happen
                self._upkeep.roll_back()
                if self._heal(error):  # with a transaction of its own, so that nothing is undecided
                    continue
                self._fail(jobs, error)
                return
        self._commits += 1
        if self._complained and any(type(job.operation) not in READS for job in jobs):
            self._complained = False
            logger.warning("commits succeed again")
        self._tables.shrink()
        self._call(self._recover if self._failing else self._answer, answers)

    def _transact(self, jobs: list[_Job], refused: dict[int, StoreError]) -> list[_Answer]:
        """One transaction over `jobs`, to which what is queued is added. Raises `_Blamed`, or what a commit raised."""
        reading = type(jobs[0].operation) in READS
        # A transaction that only reads needs no lock, and ends before the first operation that writes.
        self._connection.execute("BEGIN" if reading and len(jobs) == 1 else "BEGIN IMMEDIATE")
        answers: list[_Answer] = []
        while True:
            index = len(answers)
            answers.append((jobs[index].done, refused.get(index) or self._perform(index, jobs[index])))
            if len(answers) < len(jobs):
                continue
            if len(jobs) >= COMMIT_OPERATIONS or self._tables.moved() >= COMMIT_BYTES:
                break
            if (job := self._next()) is None:
                break
            if reading and type(job.operation) not in READS:
                self._held = job
                break
            jobs.append(job)
        self._tables.flush()
        failpoints.hit("commit.before")
        self._connection.execute("COMMIT")
        failpoints.hit("commit.after")
        self._tables.committed()
        return answers

    def _perform(self, index: int, job: _Job) -> Any:
        """The result of an operation, its `StoreError` included."""
        self._pulse = time.monotonic()
        try:
            return self._tables.execute(job.operation)
        except StoreError as error:
            return error
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.OperationalError) and primary_code(error) in _TRANSIENT:
                raise
            raise _Blamed(index, error) from error
        except Exception as error:
            raise _Blamed(index, error) from error

    def _refuse(self, job: _Job, cause: Exception) -> StoreError:
        """The error of an operation that cannot be carried out, after a pause if the file is the reason."""
        name = type(job.operation).__name__
        logger.error("%s cannot be carried out", name, exc_info=cause)
        if isinstance(cause, sqlite3.Error) and is_damage(cause):
            self._failing = failure(cause)
            self._closing.wait(self._pause)  # who tries again must not keep the disk busy
            return self._failing
        return StoreError(f"{name} cannot be stored: {cause}")

    def _heal(self, cause: Exception) -> bool:
        """Answer damage, once in a life by new indexes and once by a new file; whether to try the operation again."""
        if not (isinstance(cause, sqlite3.Error) and is_damage(cause)):
            return False
        if not self._reindexed:
            self._reindexed = True
            self._tables.trust()
            if self._upkeep.reindex():
                return True
        return not self._rebuilt and self._rebuild()

    def _rebuild(self) -> bool:
        """Go on with a new file of everything that can be read; whether that succeeded. The damaged one stays beside it."""
        if time.monotonic() < self._next_rebuild:
            return False
        kept = aside(self.path)
        try:
            lost = rebuild(self.path, self._connection, keep=kept, live=self._live)
        except (sqlite3.Error, OSError, StoreError) as error:
            self._next_rebuild = time.monotonic() + REBUILD_RETRY
            logger.error("the store is damaged, and cannot be copied into a new file: %s", error)  # noqa: TRY400
            self._connection.close()
        else:
            self._rebuilt = True
            logger.error("the store was damaged; what can be read is in a new file, the damaged one is %s", kept)
            logger.error("what could not be read is in: %s", ", ".join(lost) or "no table")
        self._upkeep.close()
        self._connection = connect(self.path, self._factory)
        self._use_connection()
        return self._rebuilt

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        """Wait until a transaction commits again, then answer `jobs` and all that is queued with `StoreFailed`.

        Meanwhile what only reads is answered, so that what is held can still be delivered. What a full disk kept from being
        written is decided, for its last frame cannot be in the log: it is answered after each pause.
        """
        self._failing = failed = failure(error)
        if not self._complained:
            logger.error("%s; %d operations are undecided", failed, len(jobs))
            self._complained = True
        refused: list[_Job] = []
        for job in jobs if self._held is None else [*jobs, self._held]:
            self._read_or_keep(job, refused)
        self._held = None
        pause = self._pause
        while True:
            self._serve_reads(refused, pause)
            self._pulse = time.monotonic()
            if recovered := self._upkeep.repair(make_room=failed.code == "disk_full"):
                break
            if failed.code == "disk_full":
                self._call(self._answer, self._refusals(refused, failed))
                refused = []
            if self._closing.is_set():
                logger.error("closing while commits fail; %d operations stay undecided", len(refused))
                break
            pause = min(LONGEST_PAUSE, 2 * pause)
        answers = self._refusals(refused, failed) + self._drain(failed)
        if recovered:
            logger.debug("a small commit succeeded; %d operations were refused", len(answers))
            self._call(self._recover, answers)
        else:
            self._stop = True
            self._call(self._answer, answers)

    def _serve_reads(self, refused: list[_Job], seconds: float) -> None:
        """For so long take what is queued: answer what only reads, add the rest to `refused`. Ends early at `close`."""
        until = time.monotonic() + seconds
        while not self._stop and (left := until - time.monotonic()) > 0:
            try:
                job = self._queue.get(timeout=left)
            except Empty:
                return
            self._pulse = time.monotonic()
            if job is None:
                self._stop = True
            else:
                self._read_or_keep(job, refused)

    def _read_or_keep(self, job: _Job, refused: list[_Job]) -> None:
        """Answer an operation that only reads; one that writes, and one that cannot be read at present, is refused later."""
        if type(job.operation) in READS:
            try:
                self._connection.execute("BEGIN")
                result = self._tables.execute(job.operation)
                self._tables.flush()
                self._connection.execute("COMMIT")
            except StoreError as error:
                self._upkeep.roll_back()
                self._call(self._answer, [(job.done, error)])
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the next commit that succeeds will show
                self._upkeep.roll_back()
                logger.debug("%s fails, too: %s", type(job.operation).__name__, error)
            else:
                self._call(self._answer, [(job.done, result)])
                return
        refused.append(job)

    def _drain(self, failed: StoreFailed) -> list[_Answer]:
        """Take all that is queued, to be answered with a failure."""
        jobs = [self._held] if self._held is not None else []
        self._held = None
        while job := self._next():
            jobs.append(job)
        return self._refusals(jobs, failed)

    @staticmethod
    def _refusals(jobs: list[_Job], failed: StoreFailed) -> list[_Answer]:
        return [(job.done, StoreFailed(str(failed), failed.code)) for job in jobs]

    def _idle(self) -> bool:
        return self._held is None and not self._stop and self._queue.empty()

    def _tidy(self) -> None:
        """Upkeep between commits, without holding up what is queued."""
        while self._tables.has_garbage() and (self._idle() or self._commits % GARBAGE_COMMITS == 0):
            if not self._upkeep.collect() or not self._idle():
                break
        size = self._upkeep.log_size()
        if size > TRUNCATING_CHECKPOINT:
            self._checkpoint("TRUNCATE")
        elif size > IDLE_CHECKPOINT:
            if self._upkeep.log_reaches(IDLE_CHECKPOINT if self._idle() else BUSY_CHECKPOINT):
                self._checkpoint("PASSIVE")
        elif self._commits % RESERVING_COMMITS == 0 and self._idle():
            self._upkeep.reserve_log()

    def _checkpoint(self, mode: str) -> None:
        """Bring the log into the file. Where it belongs to another one, which may show here alone, make one file of both."""
        error = self._upkeep.checkpoint(mode)
        if error is not None and is_damage(error) and not self._rebuilt:
            self._rebuild()
