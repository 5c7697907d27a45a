"""Files are written whole or not at all, and refused before the work starts."""

import os
import stat

import pytest

from lipcheck.errors import OutputError
from lipcheck.renderers import files


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    target = tmp_path / "report.json"
    files.check_writable(target)
    assert list(tmp_path.iterdir()) == []
    files.write_atomically(target, "one")
    target.chmod(0o600)
    files.write_atomically(target, "two")
    assert target.read_text() == "two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    files.write_atomically(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(target, "\ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("check", [files.check_writable, lambda path: files.write_atomically(path, "")])
def test_what_cannot_be_written_is_said_with_the_path(tmp_path, check):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"no/such/x cannot be written \(No such file or directory\)"):
        check(tmp_path / "no/such/x")
    with pytest.raises(OutputError, match="Not a directory"):
        check(tmp_path / "file/x")
    with pytest.raises(OutputError, match="folder"):
        files.check_writable(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no such device")
def test_a_device_is_written_to_directly():
    from pathlib import Path

    files.check_writable(Path("/dev/null"))
    files.write_atomically(Path("/dev/null"), "x")
    assert not os.path.isfile("/dev/null")
