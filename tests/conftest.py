"""One thread a process: the suite runs several processes, and threads that wait for each other are slower than none."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("loaded", deadline=None)  # a busy machine is no failure
settings.load_profile("loaded")
