"""One thread a process: the suite runs several processes, and threads that wait for each other are slower than none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("loaded", deadline=None)  # a busy machine is no failure
settings.load_profile("loaded")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
