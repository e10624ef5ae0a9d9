"""The package as Python sees it: names, signatures, help, types, and no effects of importing it."""

import inspect
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import hpt_mlflow
from hpt_mlflow.cli.stages import stage_command
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.options import Settings, choices_of, option
from hpt_mlflow.serving import EmbeddingModel
from hpt_mlflow.stages import STAGES, register_stage
from hpt_mlflow.stages.models import Transform
from hpt_mlflow.stages.signature import takes

# What importing must leave alone, as JSON.
LOOK = """
def look():
    import json, logging, os, signal, sys, threading, warnings
    from PIL import Image, ImageFile
    return json.dumps({
        "filters": [str(filter) for filter in warnings.filters],
        "loggers": {name: logging.getLogger(name).level for name in ("", "optuna", "mlflow", "torch", "hpt_mlflow")},
        "handlers": len(logging.getLogger().handlers),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "pillow": [Image.MAX_IMAGE_PIXELS, ImageFile.MAXBLOCK, ImageFile.LOAD_TRUNCATED_IMAGES],
        "variables": dict(os.environ),
        "threads": threading.active_count(),
    })
"""
IMPORT = """
before = look()
import hpt_mlflow
import sys
heavy = [name for name in ("torch", "mlflow", "optuna", "numpy", "matplotlib") if name in sys.modules]
dir(hpt_mlflow)
print(json.dumps([json.loads(before), json.loads(look()), heavy]))
"""


def test_importing_the_package_changes_nothing_and_imports_nothing_heavy():
    code = f"import json\n{LOOK}\nlook()\n{IMPORT}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after, heavy = json.loads(done.stdout)
    assert after == before
    assert heavy == []


def test_every_public_name_is_there_listed_and_documented():
    assert set(hpt_mlflow.__all__) == {*hpt_mlflow._PLACES, *STAGES}
    assert set(hpt_mlflow.__all__) <= set(dir(hpt_mlflow))
    for name in hpt_mlflow.__all__:
        assert inspect.getdoc(getattr(hpt_mlflow, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hpt_mlflow.nothing  # noqa: B018


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_shows_each_option_with_its_default_and_meaning(name):
    function, settings = getattr(hpt_mlflow, name), STAGES[name].settings
    parameters = inspect.signature(function).parameters
    assert {each: parameter.default for each, parameter in parameters.items()} == vars(settings())
    text = " ".join(inspect.getdoc(function).split())
    for field in settings.__dataclass_fields__.values():
        assert f"{field.name}: {' '.join(field.metadata['help'].split())}" in text
        if choices_of(field):
            annotation = parameters[field.name].annotation
            (literal,) = [each for each in (annotation, *get_args(annotation)) if get_origin(each) is Literal]
            assert get_args(literal) == choices_of(field)


@pytest.mark.slow
def test_mypy_knows_the_options(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\n"
        "import hpt_mlflow\n"
        "result = hpt_mlflow.pretrain(data=Path('photos'), preset='paper', steps=5)\n"
        "result.load().backbone.eval()\n"
        "hpt_mlflow.pretrain(stepz=5)\n"
        "hpt_mlflow.pretrain(preset='quickly')\n"
    )
    words = [sys.executable, "-m", "mypy", "--follow-imports", "silent", "--cache-dir", str(tmp_path), str(program)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=Path(hpt_mlflow.__file__).parents[1])
    assert [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line] == ["5", "6"], done.stdout


@dataclass(frozen=True, kw_only=True)
class OwnSettings(Settings):
    """A stage of somebody else's."""

    word: str = option("hello", "What to print.")


@takes(OwnSettings)
def greet(settings: OwnSettings) -> None:
    """Print a word."""
    print(settings.word)


@pytest.fixture
def greeting():
    register_stage("greet", OwnSettings, f"{__name__}:greet")
    yield
    del STAGES["greet"]


def test_a_registered_stage_is_a_function_and_a_command(greeting, capsys):
    hpt_mlflow.greet(word="from Python")
    assert capsys.readouterr().out == "from Python\n"
    result = CliRunner().invoke(stage_command(STAGES["greet"]), ["--word", "from a shell"])
    assert (result.exit_code, result.output) == (0, "from a shell\n")
    with pytest.raises(hpt_mlflow.HptError, match="^word: expected str, got 3"):
        hpt_mlflow.greet(word=3)


def test_a_loaded_transform_reads_an_image_as_the_served_model_does():
    network = Architecture("shufflenet_v2_x0_5", 32)
    backbone, size = build_backbone(network, seed=0)
    card = BackboneCard(network, size, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    transform = Transform(32, card.mean, card.std)
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    batch = torch.stack([transform(image), transform(Image.fromarray(image))])
    assert batch.shape == (2, 3, 32, 32)
    assert torch.equal(batch[0], batch[1])
    with torch.inference_mode():
        features = backbone.eval()(batch).flatten(1).numpy()
    assert np.array_equal(features, EmbeddingModel(backbone, card, torch.device("cpu")).predict([image, image]))
    with pytest.raises(hpt_mlflow.HptError, match="^the image cannot be read"):
        transform(b"no image")


def test_a_training_imports_nothing_that_only_other_stages_need():
    code = (
        "import sys, hpt_mlflow.stages.adapt, hpt_mlflow.stages.pretrain; "
        "assert not {'sklearn', 'scipy.stats', 'optuna', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
