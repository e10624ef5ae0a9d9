"""Stages as functions with a signature and a docstring made from their settings, for `help`, notebooks and editors."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from hpt_mlflow.options import Settings
from hpt_mlflow.reference import annotation_of, meaning, settings_of
from hpt_mlflow.stages.objects import as_setting
from hpt_mlflow.stages.processes.device import memory_errors

S = TypeVar("S", bound=Settings)
R = TypeVar("R")
WIDTH = 112


def takes(settings: type[S]) -> Callable[[Callable[[S], R]], Callable[..., R]]:
    """Let a function of settings take their fields as keywords.

    Example:
        @takes(PretrainSettings)
        def pretrain(settings: PretrainSettings) -> StageResult: ...

        pretrain(data="photos/", steps=500)
    """

    def decorate(function: Callable[[S], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def with_keywords(**values: Any) -> R:
            chosen = settings(**{name: as_setting(name, value) for name, value in values.items()})
            with memory_errors():
                return function(chosen)

        fields = settings_of(settings)
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=annotation_of(settings, field),
            )
            for field in fields
        ]
        returned = inspect.signature(function).return_annotation
        with_keywords.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
        with_keywords.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrap = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
        entries = [wrap.fill(f"{field.name}: {meaning(settings, field)}") for field in fields]
        text, *rest = re.split(r"\n\n(?=Returns:|Raises:)", inspect.getdoc(function) or "", maxsplit=1)
        with_keywords.__doc__ = "\n\n".join([text, "\n    ".join(["Args:", *entries]), *rest])
        return with_keywords

    return decorate
