"""What there is to say about each setting, for help texts and for the reference in docs/."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from hpt_mlflow.methods import METHODS, all_options, options_of, preset_options
from hpt_mlflow.options import Settings, choices_of, type_hints, value_type
from hpt_mlflow.settings import AdaptSettings, PretrainSettings, TrainingSettings
from hpt_mlflow.training.plan import PRESETS, Preset

TYPE_NAMES = {int: "whole number", float: "number", bool: "true|false", str: "text"}


def settings_of(settings: type[Settings]) -> list[dataclasses.Field[Any]]:
    """The settings of a stage: what it is about first, options of methods last."""
    own_to_methods = all_options()
    fields = dataclasses.fields(settings)
    return sorted(fields, key=lambda field: (not field.metadata["main"], field.name in own_to_methods))


def type_text(settings: type[Settings], field: dataclasses.Field[Any]) -> str:
    """The values that a setting takes: `quick|paper`, `whole number, at least 1`."""
    if choices := choices_of(field):
        return "|".join(choices)
    text = TYPE_NAMES[value_type(settings, field.name)]
    limits = [
        f"{word} {field.metadata[key]:g}"
        for key, word in (("minimum", "at least"), ("above", "above"), ("maximum", "at most"))
        if field.metadata[key] is not None
    ]
    return ", ".join([text, *limits])


def default_text(settings: type[Settings], field: dataclasses.Field[Any]) -> str:
    """The default of a setting; where the preset decides, the value in each of them."""
    if field.default is not None:
        return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    if "Default:" in field.metadata["help"]:
        return ""
    methods = [name for name in METHODS if field.name in options_of(name)]
    if methods and issubclass(settings, TrainingSettings):
        texts = {name: _in_words({p: preset_options(name, p)[field.name] for p in PRESETS}) for name in methods}
        return "; ".join(f"{name}: {text}" for name, text in texts.items()) if len(texts) > 1 else texts[methods[0]]

    def values(plan: str) -> str:
        by_preset = {name: _preset_value(field.name, preset, plan) for name, preset in PRESETS.items()}
        return _in_words(by_preset if issubclass(settings, TrainingSettings) else {})

    if issubclass(settings, AdaptSettings):
        return values("adapt")
    if issubclass(settings, PretrainSettings) and values("adapt") != values("pretrain"):
        return f"{values('adapt')}; from random weights {values('pretrain')}"
    return values("pretrain")


def _in_words(by_preset: Mapping[str, Any]) -> str:
    """The value of each preset, once if they are all the same."""
    if all(value is None for value in by_preset.values()):
        return "none"
    values = {f"{value:g}" if isinstance(value, int | float) else str(value) for value in by_preset.values()}
    if len(values) == 1:
        return values.pop()
    return ", ".join(
        f"{value:.10g} ({name})" if isinstance(value, int | float) else f"{value} ({name})"
        for name, value in by_preset.items()
    )


def meaning(settings: type[Settings], field: dataclasses.Field[Any]) -> str:
    """The help text of a setting, with its default at the end."""
    default = default_text(settings, field)
    return field.metadata["help"] + (f"  [default: {default}]" if default else "")


def annotation_of(settings: type[Settings], field: dataclasses.Field[Any]) -> Any:
    """The type that a setting is annotated with, its choices as a `Literal`."""
    hint = type_hints(settings)[field.name]
    texts = choices_of(field)
    if not texts:
        return hint
    literal: Any = typing.Literal
    choices = literal[texts]
    return choices | None if type(None) in typing.get_args(hint) else choices


def reference_page(stages: Mapping[str, type[Settings]]) -> str:
    """docs/reference.md.

    Args:
        stages: the settings of each stage, by its name.
    """
    lines = [
        "# Reference",
        "",
        "Written by `make generate` from the settings. The same names work as",
        "`mlflow run . -e STAGE -P name=value`, `hpt STAGE --name value` (with dashes for underscores) and",
        "`hpt_mlflow.STAGE(name=value)`.",
    ]
    for stage, settings in stages.items():
        lines += ["", f"## {stage}", "", (settings.__doc__ or "").strip(), ""]
        lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        for field in settings_of(settings):
            cells = (
                field.name,
                type_text(settings, field),
                default_text(settings, field),
                field.metadata["help"],
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _preset_value(name: str, preset: Preset, plan: str) -> Any:
    """The value of a setting in a preset's plan `pretrain` or `adapt`; None if it has none."""
    return getattr(preset if name in ("arch", "image_size") else getattr(preset, plan), name, None)
