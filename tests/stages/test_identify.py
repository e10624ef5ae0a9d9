import dataclasses
import json
import shlex

import numpy as np
import pytest

from hpt_mlflow.cli import hpt
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.methods import DEFAULT_METHOD, METHODS, options_of
from hpt_mlflow.settings import AdaptSettings, MainSettings, PretrainSettings
from hpt_mlflow.stages.identify import identify

SETTINGS = {"pretrain": PretrainSettings, "adapt": AdaptSettings, "main": MainSettings}
# A value of each setting that is not its default.
OTHER = {
    "weights": "moco.pth.tar",
    "adapt_steps": 7,
    "strengths": "blur_sigma=0.1:1.0",
    "alias": "base",
    "arch": "shufflenet_v2_x0_5",
    "augment": "crop,flip",
    "base": "my data/base",
    "base_steps": 9,
    "batch_size": 32,
    "bn_splits": 2,
    "cache_gib": 1.5,
    "checkpoint_every": 10,
    "compile": "off",
    "cuda_graph": "off",
    "data": "/data/my cats",
    "device": "cpu",
    "nproc": 2,
    "restarts": 3,
    "image_size": 16,
    "features": "cls+mean",
    "images": "10%",
    "key_momentum": 0.9,
    "learning_rate": 1e-05,
    "method": "simclr",
    "methods": "moco,byol",
    "milestones": "10, 50%",
    "layer_decay": 0.75,
    "drop_path": 0.2,
    "clip_gradients": 3.0,
    "optimizer": "sgd",
    "model_name": "my cats",
    "parent": "models:/hpt/3",
    "precision": "bfloat16",
    "preset": "paper",
    "queue_size": 64,
    "resume": "never",
    "root": "/some/where",
    "seed": 1,
    "sigreg_weight": 0.1,
    "small_stem": True,
    "source": "builtin:digits",
    "split_seed": 2,
    "statistics": "keep",
    "judge": "rotation",
    "on_no_gain": "register",
    "store": "delta",
    "steps": 100,
    "strict": True,
    "target": "list:/data/it's all.txt",
    "target_momentum": 0.75,
    "teacher_momentum": 0.5,
    "teacher_temperature": 0.06,
    "prototypes": 128,
    "temperature": 0.1 + 0.2,
    "update": "explora",
    "lora_rank": 3,
    "lora_targets": "attn.qkv, mlp.fc1",
    "weight_decay": 0.0001,
    "workers": 0,
}
WHERE_AND_HOW = (
    "data weights root base source target cuda_graph workers cache_gib device nproc restarts checkpoint_every resume "
    "strict"
).split()
EVERY_SETTING = [(stage, field.name) for stage, kind in SETTINGS.items() for field in dataclasses.fields(kind)]
ODD_TEXTS = [
    "two words",
    "it's",
    'say "cheese"',
    "both ' and \"",
    "$HOME `true` \\ * ? ~ ! # & ; | < >",
    "über/猫",
    "a=b",
    " leading and trailing ",
]


def needed_for(name):
    """The setting that another one needs, if it is not an option of the default method or update."""
    if name.startswith("lora_") or name == "store":
        return {"update": "lora"}
    owners = [method for method in METHODS if name in options_of(method)]
    return {"method": owners[0]} if owners and DEFAULT_METHOD not in owners else {}


def dataset(name="cats", shade=0):
    return Dataset(name, f"folder:{name}", [np.full((4, 4, 3), shade, np.uint8)], ["0"], None, ())


def identity(stage="pretrain", datasets=None, parent=None, **settings):
    return identify(stage, SETTINGS[stage](**settings), datasets or [dataset()], parent)


def read_back(command):
    """The settings that the command line makes of a command."""
    program, stage, *words = shlex.split(command)
    assert program == "hpt"
    given = hpt.commands[stage].make_context(stage, words).params
    return stage, SETTINGS[stage](**{name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize(("stage", "name"), EVERY_SETTING)
def test_a_setting_changes_the_fingerprint_where_it_decides_the_result(stage, name):
    needed = needed_for(name)
    same = identity(stage, **needed, **{name: OTHER[name]}).fingerprint == identity(stage, **needed).fingerprint
    assert same == (name in WHERE_AND_HOW)


def test_the_same_work_has_the_same_fingerprint():
    first, second = (identity(seed=3, temperature=0.2, steps=5) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 16
    assert int(first.fingerprint, 16) >= 0


def test_a_setting_said_by_default_is_the_same_work():
    assert identity(seed=0, preset="gentle").fingerprint == identity().fingerprint


@pytest.mark.parametrize("other", [dataset(shade=1), dataset(name="dogs")])
def test_other_data_is_other_work(other):
    assert identity(datasets=[other]).fingerprint != identity().fingerprint


def test_the_order_of_several_datasets_matters():
    cats, dogs = dataset(), dataset("dogs")
    assert identity("main", datasets=[cats, dogs]).fingerprint != identity("main", datasets=[dogs, cats]).fingerprint


def test_stages_are_told_apart():
    assert identity("pretrain").fingerprint != identity("adapt").fingerprint


@pytest.mark.parametrize("parent", ["models:/hpt/latest", "hpt@base", "base"])
def test_the_parent_is_what_its_name_means_now(parent):
    named = identity("adapt", parent="models:/hpt/3", alias="target")
    by_name = identify("adapt", AdaptSettings(parent=parent, alias="target"), [dataset()], parent="models:/hpt/3")
    assert by_name.fingerprint == named.fingerprint
    assert json.loads(by_name.text)["parent"] == "models:/hpt/3"
    assert read_back(by_name.command)[1].parent == "models:/hpt/3"


def test_another_version_of_the_parent_is_other_work():
    first, second = (identity("adapt", parent=f"models:/hpt/{version}") for version in (3, 4))
    assert first.fingerprint != second.fingerprint


def test_a_run_says_what_it_is_in_its_tags():
    one = identity(seed=3)
    assert one.tags == {"hpt.fingerprint": one.fingerprint, "hpt.identity": one.text, "hpt.continue": one.command}
    assert json.loads(one.text)["seed"] == 3
    assert json.loads(one.text)["data"] == [["cats", dataset().digest]]


def test_the_command_leaves_out_what_is_said_by_default():
    assert identity().command == "hpt pretrain"
    assert identity(seed=0, steps=5, resume="never").command == "hpt pretrain --steps 5"


@pytest.mark.parametrize(("stage", "name"), EVERY_SETTING)
def test_the_command_says_every_setting_but_resume(stage, name):
    settings = SETTINGS[stage](**needed_for(name), **{name: OTHER[name]})
    got = read_back(identify(stage, settings, [dataset()]).command)
    assert got == (stage, SETTINGS[stage]() if name == "resume" else settings)


@pytest.mark.parametrize("stage", SETTINGS)
def test_the_command_says_all_settings_at_once(stage):
    # Only options of the default method can be set together.
    names = {field.name for field in dataclasses.fields(SETTINGS[stage])} - {"resume", "method"}
    settings = SETTINGS[stage](**{name: OTHER[name] for name in names if not needed_for(name)})
    assert read_back(identify(stage, settings, [dataset()]).command) == (stage, settings)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_the_command_survives_a_shell_whatever_a_path_looks_like(text):
    assert read_back(identity(data=text, root=text).command) == ("pretrain", PretrainSettings(data=text, root=text))


@pytest.mark.parametrize("value", [1e-05, 1 / 3, 0.1 + 0.2, 123456789.123, 5e-324])
def test_the_command_says_numbers_to_the_last_bit(value):
    assert read_back(identity(learning_rate=value).command)[1].learning_rate == value


def test_one_value_written_in_two_ways_is_the_same_work():
    assert identity(learning_rate=1).fingerprint == identity(learning_rate=1.0).fingerprint
