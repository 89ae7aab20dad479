"""What happens in a forked process."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

__all__ = ["in_forked_process"]

_SECONDS = 60
"""A child that hangs is ended after so long; none waits for it otherwise."""


def in_forked_process(check: Callable[[], object]) -> None:
    """Run a check in a forked process; fail if it fails there, or never ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # no test runner in here: whatever happens, leave at once
        status = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        try:
            check()
            status = 0
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(writing, traceback.format_exc().encode()[-8000:])
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, told or f"the forked process ended with {status}"
