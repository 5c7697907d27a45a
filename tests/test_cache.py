"""The cache's file: whole rows come back, anything else counts as absent, and no damage to it is an error."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcheck import cache, cli
from lipcheck.cache import Cache

ROWS = {f"key {n}": bytes([n]) * 40 * (n + 1) for n in range(60)}
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs the permissions of a POSIX system")


@pytest.fixture
def full(tmp_path):
    """A cache with rows, its file closed."""
    made = Cache(tmp_path / "made")
    made.keep(ROWS)
    assert made.problem == ""
    return made


def again(one: Cache) -> Cache:
    """As the next process finds it."""
    return Cache(one.folder)


def direct(one: Cache, command: str, *values) -> None:
    connection = sqlite3.connect(one.file)
    with connection:
        connection.execute(command, values)
    connection.close()


def test_rows_are_found_by_their_keys(full):
    assert again(full).find([*ROWS, "another", "key"]) == ROWS
    again(full).keep({"key 3": b"new"})
    assert again(full).find(["key 3"]) == {"key 3": b"new"}
    many = [f"key {n}" for n in range(3000)]
    assert again(full).find(many) == ROWS | {"key 3": b"new"}


def test_looking_makes_no_folder(tmp_path):
    empty = Cache(tmp_path / "none")
    assert (empty.find(["key"]), empty.clear(), empty.contents().rows) == ({}, 0, 0)
    assert empty.problem == ""
    assert not empty.folder.exists()


@POSIX
def test_the_folder_is_the_owners_alone(full):
    assert full.folder.stat().st_mode & 0o777 == 0o700


def test_a_row_that_is_too_long_is_not_kept(tmp_path):
    one = Cache(tmp_path)
    one.keep({"long": bytes(5 << 20), "short": b"1"})
    assert again(one).find(["long", "short"]) == {"short": b"1"}


# Damage


def garbage(file: Path) -> None:
    file.write_bytes(b"no database " * 999)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def cut(length: float):
    def damage(file: Path) -> None:
        whole = file.read_bytes()
        file.write_bytes(whole[: int(length) if length > 1 else int(len(whole) * length)])

    return damage


def zeroed(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[4096:12288] = bytes(8192)
    file.write_bytes(whole)


def foreign(file: Path) -> None:
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE bounds (other TEXT)")
    connection.commit()
    connection.close()


def same_version_without_a_column(file: Path) -> None:
    foreign(file)
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {cache.VERSION}")
    connection.close()


def later_version(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 77")
    connection.close()


def stray_log(file: Path) -> None:
    file.with_name(file.name + "-wal").write_bytes(os.urandom(9000))
    file.with_name(file.name + "-shm").write_bytes(os.urandom(33000))


@pytest.mark.parametrize(
    "damage",
    [garbage, emptied, cut(1), cut(20), cut(99), cut(4096), cut(0.5), cut(0.9), zeroed, foreign, later_version,
     same_version_without_a_column, stray_log],
)  # fmt: skip
def test_a_damaged_file_is_replaced(full, damage):
    damage(full.file)
    found = again(full).find(list(ROWS))
    assert found.items() <= ROWS.items()
    after = again(full)
    after.keep(ROWS)
    assert after.problem == ""
    assert again(full).find(list(ROWS)) == ROWS
    assert again(full).contents().rows == len(ROWS)


@settings(max_examples=draws(30))
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=20))
def test_no_changed_byte_changes_a_row(tmp_path_factory, flips):
    folder = tmp_path_factory.mktemp("flipped")
    one = Cache(folder)
    one.keep(ROWS)
    whole = bytearray(one.file.read_bytes())
    for place, change in flips:
        whole[int(place * len(whole))] ^= change
    one.file.write_bytes(whole)
    assert again(one).find(list(ROWS)).items() <= ROWS.items()
    again(one).keep(ROWS)
    assert again(one).find(list(ROWS)).items() <= ROWS.items()
    shutil.rmtree(folder)


def test_a_poisoned_row_is_absent(full):
    direct(full, "UPDATE bounds SET value = ? WHERE key = 'key 1'", b"smaller")
    direct(full, "UPDATE bounds SET value = (SELECT value FROM bounds WHERE key = 'key 9') WHERE key = 'key 2'")
    swapped = "SET value = (SELECT value FROM bounds WHERE key = 'key 9'), checksum = (SELECT checksum FROM bounds"
    direct(full, f"UPDATE bounds {swapped} WHERE key = 'key 9') WHERE key = 'key 3'")
    direct(full, "UPDATE bounds SET value = 7, used = 'never' WHERE key = 'key 4'")
    direct(full, "UPDATE bounds SET checksum = 'none' WHERE key = 'key 5'")
    found = again(full).find(list(ROWS))
    assert found == {key: value for key, value in ROWS.items() if key not in [f"key {n}" for n in range(1, 6)]}
    again(full).keep({"key 1": ROWS["key 1"]})
    assert again(full).find(["key 1"]) == {"key 1": ROWS["key 1"]}


# Several at once

WORK = """
import sys
from pathlib import Path
from lipcheck.cache import Cache
who, folder = sys.argv[1], Path(sys.argv[2])
for n in range(40):
    one = Cache(folder)
    one.keep({f"{who} {n}": f"{who} {n}".encode() * 50, f"shared {n}": b"equal" * 50})
    found = one.find([f"{other} {m}" for other in "abc" for m in range(40)] + [f"shared {m}" for m in range(40)])
    for key, value in found.items():
        assert value in (key.encode() * 50, b"equal" * 50), key
    assert not one.problem, one.problem
"""


@pytest.mark.parametrize("start", [None, garbage])
def test_processes_at_once(tmp_path, start):
    one = Cache(tmp_path)
    if start:
        start(one.file)
    started = [
        subprocess.Popen([sys.executable, "-c", WORK, who, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for who in "abc"
    ]
    for process in started:
        assert (process.communicate()[1], process.returncode) == ("", 0)
    found = again(one).find([f"{who} {n}" for who in "abc" for n in range(40)])
    # Who replaces a damaged file may take a few rows along that another has just written.
    assert len(found) == 120 if start is None else len(found) >= 60
    assert len(again(one).find([f"shared {n}" for n in range(40)])) == 40 or start


def test_a_file_that_another_has_locked_is_left_alone(full, monkeypatch):
    monkeypatch.setattr(cache, "_PATIENCE", 0.05)
    holder = sqlite3.connect(full.file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    reader, writer = again(full), again(full)
    assert reader.find(list(ROWS)) == ROWS
    writer.keep({"key 1": b"new"})
    assert "locked" in writer.problem
    assert writer.find(["key 1"]) == {}
    holder.execute("COMMIT")
    holder.close()
    assert again(full).find(list(ROWS)) == ROWS


# Places that cannot be used


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    one = Cache(tmp_path / "file" / "folder")
    one.keep(ROWS)
    assert one.problem in ("Not a directory", "File exists")
    assert one.find(list(ROWS)) == {}
    assert again(one).find(list(ROWS)) == {}


def test_a_folder_in_place_of_the_file(tmp_path):
    one = Cache(tmp_path)
    one.file.mkdir()
    one.keep(ROWS)
    assert one.problem
    assert one.file.is_dir()


@POSIX
def test_what_others_can_write_to_is_not_trusted(full):
    full.folder.chmod(0o777)
    for one in (again(full), again(full)):
        assert one.find(list(ROWS)) == {}
        assert one.problem == "others can write to its folder (chmod go-w)"
        one.keep({"key 1": b"new"})
    full.folder.chmod(0o700)
    full.file.chmod(0o666)
    assert again(full).find(list(ROWS)) == {}
    full.file.chmod(0o600)
    assert again(full).find(list(ROWS)) == ROWS
    moved = full.file.with_name("moved")
    full.file.rename(moved)
    full.file.symlink_to(moved)
    assert again(full).find(list(ROWS)) == {}
    writing = again(full)
    writing.keep(ROWS)
    assert writing.problem == "its file is no regular file"


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")
def test_what_another_user_owns_is_not_trusted(full):
    os.chown(full.folder, 12345, 12345)
    assert again(full).find(list(ROWS)) == {}
    os.chown(full.folder, 0, 0)
    os.chown(full.file, 12345, 12345)
    assert again(full).find(list(ROWS)) == {}
    os.chown(full.file, 0, 0)
    assert again(full).find(list(ROWS)) == ROWS


READ = """
import os, sys
from pathlib import Path
from lipcheck.cache import Cache
os.geteuid() or os.setuid(65534)
one = Cache(Path(sys.argv[1]))
assert len(one.find([f"key {n}" for n in range(60)])) == 60, one.problem
one.keep({"key 1": b"new"})
assert "readonly" in one.problem, one.problem
assert len(Cache(Path(sys.argv[1])).find([f"key {n}" for n in range(60)])) == 60
"""


@POSIX
def test_a_folder_that_cannot_be_written_is_read(full):
    """As in an image that was built with a filled cache."""
    for folder in (full.folder, *full.folder.parents[:4]):
        if folder.stat().st_mode & 0o755 != 0o755 and os.access(folder, os.W_OK):
            folder.chmod(0o755)
    full.folder.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", READ, str(full.folder)], capture_output=True, text=True, check=False)
    full.folder.chmod(0o755)
    assert (done.stderr, done.returncode) == ("", 0)
    assert again(full).find(list(ROWS)) == ROWS


# Size


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    hours = [0]
    one = Cache(tmp_path, most=400_000, now=lambda: 1e9 + 7200 * hours[0])
    for hour in range(100):
        hours[0] = hour
        one.keep({f"row {hour}": bytes(10_000)})
        one.find(["row 0"])
    kept = [hour for hour in range(100) if f"row {hour}" in one.find([f"row {hour}"])]
    assert one.problem == ""
    assert one.contents().size <= 500_000
    assert kept[0] == 0, "the row that was used every hour"
    assert kept[1:] == list(range(100 - len(kept) + 1, 100))
    assert len(kept) >= 25


# The command


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "place"))
    return tmp_path / "place"


def test_the_folder_is_named_by_the_variable_or_the_system(place, monkeypatch):
    assert cache.folder() == place
    monkeypatch.setenv(cache.FOLDER, "relative")
    assert cache.folder() == Path.cwd() / "relative"
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    if sys.platform == "linux":
        assert cache.folder() == place / "lipcheck"


def test_info_and_clear(place, capsys):
    assert cli.main(["cache", "info"]) == 0
    assert capsys.readouterr().out == f"folder  {place}\nbounds  0\nsize    0.0 MB of at most 268 MB\n"
    Cache(place).keep(ROWS)
    assert cli.main(["cache", "info"]) == 0
    assert "bounds  60\nsize    0.1 MB" in capsys.readouterr().out
    (place / "of another").write_text("")
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "60 bounds removed\n"
    assert Cache(place).find(list(ROWS)) == {}
    assert (place / "of another").exists()
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "0 bounds removed\n"


def test_clear_mends_a_damaged_file(place, capsys):
    Cache(place).keep(ROWS)
    garbage(Cache(place).file)
    assert cli.main(["cache", "clear"]) == 0
    Cache(place).keep(ROWS)
    assert Cache(place).find(list(ROWS)) == ROWS
    assert capsys.readouterr().err == ""


def test_trouble_is_one_line(place, capsys):
    place.write_text("")
    for command in ("info", "clear"):
        assert cli.main(["cache", command]) in (0, 2)
    place.unlink()
    Cache(place).keep(ROWS)
    Cache(place).file.unlink()
    Cache(place).file.mkdir()
    for command in ("info", "clear"):
        assert cli.main(["cache", command]) == 2
        assert "its file is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["cache", "info"], ["cache", "clear"]])
def test_the_command_loads_no_torch(place, arguments):
    code = f"""
        import sys
        from lipcheck.cli import main
        main({arguments!r})
        sys.exit('torch' in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True).returncode == 0
