"""What makes two runs the same work, and the tags that record it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpt_mlflow.errors import valid_unicode
from hpt_mlflow.tracking import tags as tag

# MLflow's own.


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same work: stage, settings that decide the result, data, parent.

    Attributes:
        fields: by name, as JSON can hold them.
        command: what a user types to do the same work, and so to resume it.
    """

    fields: Mapping[str, Any]
    command: str

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of all fields."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The fields as JSON."""
        return json.dumps(self.fields, sort_keys=True)

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a run that does this work."""
        return {tag.FINGERPRINT: self.fingerprint, tag.IDENTITY: self.text, tag.CONTINUE: valid_unicode(self.command)}
