"""What kill -9 at any moment leaves behind, and whether a second run mends it."""

import os

# Read when NumPy is first imported. What forks should have no other threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
