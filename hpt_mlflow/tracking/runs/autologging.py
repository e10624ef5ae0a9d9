"""MLflow's autologging is for the user's own code: a stage logs what matters itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mlflow.utils.autologging_utils import disable_autologging

_lock = threading.Lock()
_switched_off = ExitStack()
_stages = 0


@contextmanager
def no_autologging() -> Iterator[None]:
    """Switch autologging off for the block, until the last of nested or simultaneous blocks ends.

    MLflow's own context manager switches it on again at the end of the first one.
    """
    global _stages  # noqa: PLW0603 - so is MLflow's switch
    with _lock:
        if not _stages:
            _switched_off.enter_context(disable_autologging())
        _stages += 1
    try:
        yield
    finally:
        with _lock:
            _stages -= 1
            if not _stages:
                _switched_off.close()
