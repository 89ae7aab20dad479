"""Profiles in Redis (7.0 or later): for services that run in several places and answer at once.

Each subject has two sorted sets, ordered by time: ``PREFIX:events:SUBJECT`` and ``PREFIX:attributes:SUBJECT``
(with one member). Members are JSON. With a ``ttl`` the server forgets a subject by itself when the newest of
its data has outlived it; what grew old before that goes when the next event comes, or with `expire`.

What is purged is gone for every client at once, and stays so when the server is killed: an append-only file
holds the deletion, and a server that keeps snapshots only writes a new one before `purge` returns. What the
bytes remain in, see ``docs/profiles.md``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from consentier.errors import DataError, StoreTimeout
from consentier.serving.clock import utc_now
from consentier.serving.profile_base import READ_SECONDS, WRITE_SECONDS, EventRow, ProfileStore

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import NoPermissionError, OutOfMemoryError
    from redis.retry import Retry
except ImportError as missing:
    raise DataError(
        f"profiles in Redis need a package that is not installed ({missing}): pip install 'consentier[redis]'"
    ) from missing

__all__ = ["RedisProfiles"]

GRACE_MILLISECONDS = 60_000
"""So much longer the server keeps what nobody is shown any more: its clock may be ahead of ours."""

_PREFIX = re.compile(r"[A-Za-z0-9_.-]+")
_KINDS = ("events", "attributes")
_SCANNED = 500
_POLL_SECONDS = 0.01
_SNAPSHOT_SIGNS = (
    "rdb_saves",
    "rdb_bgsave_in_progress",
    "rdb_last_load_keys_loaded",
    "rdb_last_load_keys_expired",
)
"""What the server tells (INFO) where there may be a snapshot from which it would start again."""
_CODE = re.compile(r"[A-Z]+")
_CODES = ((redis.ReadOnlyError, "READONLY"), (OutOfMemoryError, "OOM"), (NoPermissionError, "NOPERM"))
_REFUSALS = {
    "MISCONF": "it takes no changes, for it cannot write what it holds to its disk. Make room there, or mend "
    "what its log says of the last snapshot or append-only file; after a BGSAVE that succeeds it takes "
    "changes again",
    "OOM": "its memory is full up to maxmemory. Raise that, or keep less (ttl)",
    "READONLY": "it is a replica, which takes no changes. Give the address of the primary",
    "NOPERM": "its user may not do this. Give it the rights that docs/profiles.md names (Redis)",
    "NOREPLICAS": "too few replicas follow it (min-replicas-to-write). Start them, or lower that",
    "WRONGTYPE": "a key holds what Consentier did not write. Is the prefix used by somebody else?",
}
_NUMBER = 16  # hexadecimal digits before each member, which put events of one instant in order


class RedisProfiles(ProfileStore):
    """Events by subject, oldest first, in a Redis database; with the subjects' attributes beside them.

    Parameters
    ----------
    url
        ``redis://HOST/DATABASE?prefix=PREFIX``, with any option of redis-py (``rediss://`` for TLS,
        ``unix://`` for a socket). Each source needs a server, a database or a prefix of its own (by
        default ``consentier``). Only of different servers it is certain that none leads to the other.
    ttl, clock
        How old what is stored may grow, and who says what time it is: see `ProfileStore`.
    read_seconds
        How long a look-up waits for the server, on connecting and for its answer. It is never repeated.
    write_seconds
        How long a change waits.

    Raises
    ------
    DataError
        If the server cannot be reached, or is older than 7.0.
    ValueError
        If URL or prefix cannot be read.

    Notes
    -----
    A look-up is one round trip. `purge` is two; where the server keeps snapshots and no append-only file, it
    has a new one written and waits for it, for `write_seconds`. Looking the server's name up is not under the
    deadline: name it by its address, or keep a cache of names on the machine. Iterating and `expire` scan all
    keys of the database.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl: dt.timedelta | None = None,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        bare, self._prefix = _prefix_of(url)
        self._reader = _client(bare, read_seconds)  # first, for it refuses a URL without quoting its password
        self._writer = _client(bare, write_seconds)
        self._write_seconds = write_seconds
        self.answers_within = read_seconds
        super().__init__(f"{_server(bare)}, prefix {self._prefix}", ttl=ttl, clock=clock)
        with self._failures_told():
            version = str(self._writer.info("server")["redis_version"])
        if int(version.split(".")[0]) < 7:
            raise DataError(f"profile store {self.place}: Redis {version} is too old; 7.0 or later is needed")

    def close(self) -> None:
        """Give back what is held open. The store opens anew when it is used again."""
        for client in (self._reader, self._writer):
            client.close()
            client.connection_pool.disconnect()

    def _events(self, subject: str, since: int) -> Sequence[tuple[int, str, str | None, float | None]]:
        with self._failures_told():
            members: Any = self._reader.zrangebyscore(self._key("events", subject), since, "+inf")
            rows = [tuple(json.loads(member[_NUMBER:])) for member in members]
            # The server compares floats, which are exact to the microsecond until the year 2255.
            return sorted((row for row in rows if row[0] >= since), key=_by_time)

    def _attributes(self, subject: str, since: int) -> tuple[int, str] | None:
        with self._failures_told():
            members: Any = self._reader.zrangebyscore(self._key("attributes", subject), since, "+inf")
            for member in members:
                ts, content = json.loads(member)
                if ts >= since:
                    return ts, content
        return None

    def _subjects(self, kind: str, since: int) -> Iterator[str]:
        start = len(self._key(kind, ""))
        with self._failures_told():
            for keys in self._scanned(kind):
                with self._writer.pipeline(transaction=False) as asked:
                    for key in keys:
                        asked.zcount(key, since, "+inf")
                    counts = asked.execute()
                for key, count in zip(keys, counts, strict=True):
                    if count:
                        yield key[start:].decode()

    def _add(self, subject: str, rows: Sequence[EventRow]) -> None:
        key = self._key("events", subject)
        with self._failures_told():
            last = self._writer.incrby(f"{self._prefix}:number", len(rows))
            first = last - len(rows) + 1
            members = {
                f"{first + place:0{_NUMBER}x}{json.dumps(row)}": row.ts for place, row in enumerate(rows)
            }
            with self._writer.pipeline(transaction=True) as change:
                change.zadd(key, members)
                self._limit_age(change, key, max(row.ts for row in rows))
                change.execute()

    def _replace_attributes(self, subject: str, ts: int, content: str) -> None:
        key = self._key("attributes", subject)
        with self._failures_told(), self._writer.pipeline(transaction=True) as change:
            change.delete(key)
            change.zadd(key, {json.dumps([ts, content]): ts})
            self._limit_age(change, key, ts)
            change.execute()

    def _limit_age(self, change: Any, key: str, newest: int) -> None:
        """Have the server forget what is too old now, and the whole key when its newest member will be."""
        if self._ttl is None:
            return
        since = self._since()
        change.zremrangebyscore(key, "-inf", f"({since}")
        left = max(0, newest - since) // 1000 + GRACE_MILLISECONDS
        change.pexpire(key, left, nx=True)
        change.pexpire(key, left, gt=True)  # a late event shortens nobody's time

    def _delete(self, subject: str) -> int:
        events, attributes = (self._key(kind, subject) for kind in _KINDS)
        with self._failures_told(), self._writer.pipeline(transaction=True) as change:
            change.zcard(events)
            change.zcard(attributes)
            change.unlink(events, attributes)
            found = change.execute()
        with self._failures_told():
            self._outlast_crash()
        return int(found[0] + found[1])

    def _outlast_crash(self) -> None:
        """Have nothing left from which a server that is killed now would start with what was deleted."""
        state = self._writer.info("persistence")
        try:
            if state["aof_enabled"]:
                self._wait_for_file(state)
            elif any(state[sign] for sign in _SNAPSHOT_SIGNS):
                self._renew_snapshot(state)
        except KeyError as missing:  # a server that only speaks as Redis does
            raise self._outlived(f"it does not tell {missing}") from None

    def _wait_for_file(self, state: dict[str, Any]) -> None:
        """Wait until the append-only file holds what it is to hold by now.

        That is so before the server answers, but for ``appendfsync everysec``: a slow disk then delays the
        writing for up to two seconds, and no answer.
        """
        wanted = state["aof_current_size"] + state["aof_buffer_length"]
        for now in self._states(state, "the append-only file is not written in time"):
            # A file that is written anew is shorter: then the buffer alone tells.
            if now["aof_current_size"] >= wanted or not now["aof_buffer_length"]:
                return

    def _renew_snapshot(self, state: dict[str, Any]) -> None:
        """Have a snapshot written from now on, unless the last one is as new."""
        if not state["rdb_bgsave_in_progress"] and not state["rdb_changes_since_last_save"]:
            return
        begun = False  # one that is being written already was begun before the deletion, perhaps
        for now in self._states(state, "no new snapshot in time"):
            if now["rdb_bgsave_in_progress"]:
                continue
            if not begun:
                begun = self._begin_snapshot()
            elif now["rdb_last_bgsave_status"] == "ok":
                return
            else:
                raise self._outlived("the new snapshot failed")

    def _states(self, state: dict[str, Any], too_late: str) -> Iterator[dict[str, Any]]:
        """How the server keeps what it holds: as it was, and then as it is, until it is too late."""
        deadline = time.monotonic() + self._write_seconds
        while True:
            yield state
            if time.monotonic() > deadline:
                raise self._outlived(too_late)
            time.sleep(_POLL_SECONDS)
            state = self._writer.info("persistence")

    def _begin_snapshot(self) -> bool:
        """Have a snapshot begun, where none was being written; say whether it is."""
        try:
            self._writer.bgsave(schedule=False)
        except redis.ResponseError as error:
            if "already in progress" in str(error):  # somebody else was quicker
                return True
            if "child process is active" in str(error):  # a module's
                return False
            raise self._outlived(f"a new snapshot is refused ({_code(error)})") from None
        return True

    def _outlived(self, why: str) -> DataError:
        return DataError(
            f"profile store {self.place}: the rows are deleted, but a server that is killed now may start "
            f"with them again: {why}. Mend that (docs/profiles.md, Redis), and do it again"
        )

    def _delete_before(self, limit: int) -> int:
        count = 0
        with self._failures_told():
            for kind in _KINDS:
                for keys in self._scanned(kind):
                    with self._writer.pipeline(transaction=False) as change:
                        for key in keys:
                            change.zremrangebyscore(key, "-inf", f"({limit}")
                        count += sum(change.execute())
        return count

    def _key(self, kind: str, subject: str) -> str:
        return f"{self._prefix}:{kind}:{subject}"

    def _scanned(self, kind: str) -> Iterator[list[bytes]]:
        """All keys of a kind, in portions, each key once."""
        keys = {*self._writer.scan_iter(match=self._key(kind, "*"), count=_SCANNED)}
        ordered = sorted(keys)
        for start in range(0, len(ordered), _SCANNED):
            yield ordered[start : start + _SCANNED]

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Tell what went wrong without what was asked: it is about persons."""
        try:
            yield
        except redis.TimeoutError:
            raise StoreTimeout(f"profile store {self.place}: no answer in time") from None
        except redis.AuthenticationError:
            raise DataError(f"profile store {self.place}: the server refuses user or password") from None
        except (redis.RedisError, OSError) as error:
            raise DataError(f"profile store {self.place}: {_told(error)}") from None
        except (ValueError, TypeError, IndexError):
            raise DataError(
                f"profile store {self.place}: a key holds what Consentier did not write; is the prefix "
                "used by somebody else?"
            ) from None


def _by_time(row: tuple[Any, ...]) -> int:
    ts: int = row[0]
    return ts


def _told(error: Exception) -> str:
    """What went wrong, and what to do where that is known. What the server says may quote data."""
    if isinstance(error, redis.ConnectionError | OSError):
        return f"{type(error).__name__}: {error}"
    code = _code(error)
    if code in _REFUSALS:
        return f"the server refuses ({code}): {_REFUSALS[code]}"
    return f"the server fails: {type(error).__name__} ({code})"


def _code(error: Exception) -> str:
    """The code of what the server says (WRONGTYPE, MISCONF); redis-py makes types of some."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    # A pipeline puts before it the command, with its keys.
    word = str(error).rpartition("caused error: ")[2].split(" ", 1)[0]
    return word if _CODE.fullmatch(word) else "no code"


def _prefix_of(url: str) -> tuple[str, str]:
    """The URL without its prefix, and the prefix."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("the URL of a profile store in Redis starts with redis://, rediss:// or unix://")
    options = parse_qsl(parts.query, keep_blank_values=True)
    prefixes = [value for name, value in options if name == "prefix"] or ["consentier"]
    if len(prefixes) > 1 or not _PREFIX.fullmatch(prefixes[0]):
        raise ValueError(
            "the prefix of a profile store is letters, digits, full stops, _ and -: write it once"
        )
    rest = urlencode([(name, value) for name, value in options if name != "prefix"])
    return url.split("?", 1)[0] + (f"?{rest}" if rest else ""), prefixes[0]


def _server(url: str) -> str:
    """Which database of which server it is: the same words for all URLs that lead there."""
    parts = urlsplit(url)
    database = dict(parse_qsl(parts.query)).get("db")
    if parts.scheme == "unix":
        return f"unix://{parts.path}?db={database or 0}"
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{database or parts.path.strip('/') or 0}"


def _client(url: str, seconds: float) -> redis.Redis:
    """A client that asks once."""
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the URL of a profile store in Redis cannot be read: {type(error).__name__}"
        ) from None
