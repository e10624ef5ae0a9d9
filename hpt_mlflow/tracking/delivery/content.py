"""What an entry of a spool contains, in general."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hpt_mlflow.tracking.delivery.run_client import RunClient


class Content(ABC):
    """What an entry contains."""

    kind: ClassVar[str]
    has_files: ClassVar[bool] = False

    @property
    def payload(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Content:
        """The opposite of `payload`; raises TypeError if it is not one."""
        return cls(**payload)

    def __str__(self) -> str:
        return self.kind

    @abstractmethod
    def deliver(self, run: RunClient, folder: Path) -> str | None:
        """Send it to MLflow.

        Args:
            folder: the entry's files, if this kind has files.

        Returns:
            The address of a registered version.
        """
