"""What earlier audits found, on disk: a table from keys to rows, in a folder that nobody else can write to.

Nothing depends on it. A file that is damaged is replaced by an empty one, a row whose checksum is wrong counts as
absent, and where the folder cannot be used the reason is kept and everything is computed. Any number of processes and
threads may use one folder: every call opens the database for itself, in write-ahead mode, and waits a while for others.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FOLDER, OFF = "LIPCHECK_CACHE_DIR", "LIPCHECK_NO_CACHE"
# What a row and the table look like; files of another version are left alone.
VERSION = 1
_FILE = f"bounds-{VERSION}.sqlite"
_MOST = 256 << 20
_MOST_ROW = 4 << 20
# Keys in one question; old versions of SQLite take 999.
_ASKED = 500
# Seconds: how long others are waited for, and after which a row's last use is written down again.
_PATIENCE = 5.0
_AGAIN = 3600
# Removal goes on until so much of the permitted size is left, so that it does not come with every row.
_AFTER = 0.875
_TABLE = """
CREATE TABLE IF NOT EXISTS bounds (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL, used INTEGER NOT NULL
)"""
_ORDER = "CREATE INDEX IF NOT EXISTS by_use ON bounds (used)"


@dataclass(frozen=True, slots=True)
class Contents:
    """What the cache holds. Units: bytes; `problem` says why it cannot be used, "" where it can."""

    folder: Path
    rows: int
    size: int
    most: int
    problem: str


def folder() -> Path:
    """Where the cache is: the folder that LIPCHECK_CACHE_DIR names, or lipcheck's own among the user's caches."""
    if given := os.environ.get(FOLDER):
        return Path(given).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("lipcheck", appauthor=False)


def turned_off() -> bool:
    """Whether LIPCHECK_NO_CACHE is set, to anything but the empty word."""
    return bool(os.environ.get(OFF))


class Cache:
    """Rows of bytes by key. No method raises for the state of the disk: `problem` tells why nothing is found or kept.

    Units: `most` is in bytes; the rows that were not used for longest go first.
    """

    def __init__(self, place: Path, *, most: int = _MOST, now: Callable[[], float] = time.time) -> None:
        self.folder, self.file = place, place / _FILE
        self.most, self.now = most, now
        self.problem = ""

    def find(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The rows of those keys that have one which is whole."""
        if not keys or not self._exists():
            return {}

        def look(connection: sqlite3.Connection) -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            old: list[str] = []
            for start in range(0, len(keys), _ASKED):
                part = list(keys[start : start + _ASKED])
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT key, value, checksum, used FROM bounds WHERE key IN ({marks})", part
                )  # fmt: skip
                for key, value, checksum, used in rows:
                    if isinstance(value, bytes) and checksum == _checksum(key, value):
                        found[key] = value
                        if not isinstance(used, int) or abs(self.now() - used) > _AGAIN:
                            old.append(key)
            self._touch(connection, old)
            return found

        return self._attempt(look, {})

    def keep(self, rows: Mapping[str, bytes]) -> None:
        """The rows are in the table, those of equal keys replaced; older ones may have gone."""
        fitting = {key: value for key, value in rows.items() if len(value) <= _MOST_ROW}
        if not fitting or self.problem or not self._made():
            return
        used = int(self.now())

        def write(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                connection.executemany(
                    "INSERT OR REPLACE INTO bounds VALUES (?, ?, ?, ?)",
                    [(key, value, _checksum(key, value), used) for key, value in fitting.items()],
                )
            if _size(connection) > self.most:
                self._trim(connection)

        self._attempt(write, None)

    def contents(self) -> Contents:
        """What there is, counted."""

        def count(connection: sqlite3.Connection) -> int:
            return int(connection.execute("SELECT COUNT(*) FROM bounds").fetchone()[0])

        rows = self._attempt(count, 0) if self._exists() else 0
        return Contents(self.folder, rows, sum(map(_length, self._files())), self.most, self.problem)

    def clear(self) -> int:
        """How many rows were removed; none is left unless there is a problem."""

        def empty(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                removed = connection.execute("DELETE FROM bounds").rowcount
            connection.execute("PRAGMA incremental_vacuum").fetchall()
            return removed

        return self._attempt(empty, 0) if self._exists() else 0

    def _files(self) -> tuple[Path, ...]:
        return tuple(self.file.with_name(self.file.name + end) for end in ("", "-wal", "-shm"))

    def _exists(self) -> bool:
        """Whether there is a file to look into, one that may be trusted."""
        if self.problem:
            return False
        try:
            if not os.path.lexists(self.file):
                return False
            self.problem = _distrusted(self.folder, self.file)
        except OSError as error:
            self.problem = _reason(error)
        return not self.problem

    def _made(self) -> bool:
        """Whether there is a folder to write to, one that may be trusted: made for its owner alone."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.problem = _distrusted(self.folder, self.file)
        except OSError as error:
            self.problem = _reason(error)
        return not self.problem

    def _attempt(self, call: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """What the call returns. A damaged file is replaced by an empty one, once; any other failure is the problem."""
        for attempt in range(2):
            before = _identity(self.file)
            try:
                with contextlib.closing(self._opened()) as connection:
                    return call(connection)
            except sqlite3.Error as error:
                if attempt or not _damaged(error):
                    self.problem = " ".join(str(error).split())[:80] or type(error).__name__
                    break
                self._remove(before)
            except OSError as error:
                self.problem = _reason(error)
                break
            if self.problem:
                break
        return otherwise

    def _opened(self) -> sqlite3.Connection:
        """A connection to a database that has the table."""
        writable = os.access(self.folder, os.W_OK) and (not self.file.exists() or os.access(self.file, os.W_OK))
        # Where nothing can be written there are no locks either: then the file is read as it stands.
        mode = "rwc" if writable else "ro&immutable=1"
        connection = sqlite3.connect(
            f"{self.file.as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE, isolation_level=None
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            # Rows carry checksums and can be computed again: no reason to wait for the disk.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")  # one moment for both: another process may be making the table
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            connection.execute("COMMIT")
            if version != VERSION and (version or tables):
                raise sqlite3.DatabaseError("not this version's table")
            if version != VERSION:
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """An empty database with the table; another process may be doing the same."""
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with contextlib.suppress(sqlite3.OperationalError):  # at once, not after a while, where another is at it
            connection.execute("PRAGMA journal_mode = WAL")
        with _transaction(connection):
            connection.execute(_TABLE)
            connection.execute(_ORDER)
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _touch(self, connection: sqlite3.Connection, keys: Sequence[str]) -> None:
        """The rows are known to be in use, if that can be written."""
        if keys:
            with contextlib.suppress(sqlite3.OperationalError), _transaction(connection):
                connection.executemany(
                    "UPDATE bounds SET used = ? WHERE key = ?", [(int(self.now()), key) for key in keys]
                )

    def _trim(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            while _size(connection) > self.most * _AFTER:
                rows = connection.execute("SELECT COUNT(*) FROM bounds").fetchone()[0]
                if not rows:
                    break
                oldest = "SELECT key FROM bounds ORDER BY used, rowid LIMIT ?"
                connection.execute(f"DELETE FROM bounds WHERE key IN ({oldest})", (max(1, rows // 16),))
        connection.execute("PRAGMA incremental_vacuum").fetchall()

    def _remove(self, damaged: tuple[int, int] | None) -> None:
        """The damaged file goes, unless another process has put a new one in its place already."""
        if _identity(self.file) != damaged:
            return
        for path in self._files():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self.problem = f"it is damaged and cannot be replaced: {_reason(error)}"


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _checksum(key: str, value: bytes) -> bytes:
    """Of the row with its key: a row under another key is none."""
    return hashlib.blake2b(key.encode() + b"\n" + value, digest_size=16).digest()


def _size(connection: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    pages, free, each = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * each)


def _damaged(error: sqlite3.Error) -> bool:
    """Whether the file is to blame, and not another process, the disk's space or what is permitted."""
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.NotSupportedError):
        return False
    text = str(error)
    passing = (
        "locked",
        "busy",
        "readonly",
        "read-only",
        "unable to open",
        "is full",
        "not authorized",
        "out of memory",
    )
    return not any(word in text for word in passing)


def _distrusted(place: Path, file: Path) -> str:
    """Why others may have written what is there; "" where they cannot have."""
    if not hasattr(os, "geteuid"):
        return ""
    owners = {os.geteuid(), 0}
    found = place.stat()
    if found.st_uid not in owners:
        return "its folder belongs to another user"
    if stat.S_IMODE(found.st_mode) & 0o022:
        return "others can write to its folder (chmod go-w)"
    with contextlib.suppress(FileNotFoundError):
        held = file.lstat()
        if not stat.S_ISREG(held.st_mode):
            return "its file is no regular file"
        if held.st_uid not in owners or stat.S_IMODE(held.st_mode) & 0o022:
            return "others can write to its file"
    return ""


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
