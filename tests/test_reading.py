"""Small files in directories that others may write to: read up to a limit, and never waited for."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from consentier.reading import read_regular


def test_a_file_is_read_up_to_its_limit_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="longer than 4 bytes") as caught:
        read_regular(tmp_path / "file", 4)
    assert caught.value.errno == errno.EFBIG


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/socket")  # short: a socket's path has at most 108 bytes
        os.close(folder)
    for name in ("pipe", "device", "socket", "."):
        with pytest.raises(OSError, match=r"regular file|No such device|Is a directory"):
            read_regular(tmp_path / name, 5)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing", 5)
