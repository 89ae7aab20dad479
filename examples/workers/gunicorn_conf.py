"""Gunicorn's configuration for both services: docs/service.md says why."""

from __future__ import annotations

import gc
import os
from typing import Any

# Before NumPy is imported: answers use no BLAS, and its threads would stand beside those of the requests.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# One a core: a second thread of Python adds nothing to one.
workers = len(os.sched_getaffinity(0))
# Open and verify the bundles once, in the process that forks the workers.
preload_app = os.environ.get("SHOP_PRELOAD", "yes") == "yes"
# A worker that hangs for so many seconds is replaced.
timeout = 30
# No door besides the port.
control_socket_disable = True


def pre_fork(_server: Any, _worker: Any) -> None:
    """Keep the collector of garbage from touching, and so copying, what the workers share."""
    gc.freeze()


def post_worker_init(_worker: Any) -> None:
    """Follow the bundles in each worker: threads do not live on in a process that is forked.

    First a look, as a worker that takes the place of another begins with the bundles of when the service did.
    """
    from examples.workers import shop

    recommender = shop.recommender()
    recommender.check()
    recommender.start()
