"""A report into a file: known to be writable before the work starts, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lipcheck.errors import OutputError
from lipcheck.text import clean


def check_writable(path: Path) -> None:
    """A file can be put at `path` now.

    Errors: OutputError with the path and the system's reason.
    """
    if _device(path):
        return
    target = _target(path)
    if target.is_dir():
        raise OutputError(f"{clean(str(path))} is a folder; name a file in it")
    try:
        handle, probe = _temporary(target)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file holds `content`; when writing fails, whatever it held before is untouched.

    Errors: OutputError with the path and the system's reason.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if _device(path):
            path.write_bytes(data)
            return
        target = _target(path)
        handle, temporary = _temporary(target)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, _mode(target))
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _temporary(target: Path) -> tuple[int, str]:
    return tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".part", dir=target.parent)


def _target(path: Path) -> Path:
    """Where the bytes go: behind a symbolic link, so that the link stays one."""
    return Path(os.path.realpath(path))


def _device(path: Path) -> bool:
    """Pipes and devices cannot be renamed onto; they are written to directly."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _mode(target: Path) -> int:
    if target.exists():
        return target.stat().st_mode & 0o7777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _unwritable(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    return OutputError(f"{clean(str(path))} cannot be written ({reason}); choose another file")
