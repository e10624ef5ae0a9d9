from __future__ import annotations

from dataclasses import fields
from itertools import combinations

import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments import STUDIES, load_study
from hpt_mlflow.experiments.base import METHODS
from hpt_mlflow.experiments.figure import BASE_AS_IS
from hpt_mlflow.experiments.plan import START_SETTING
from hpt_mlflow.methods import METHODS as SELF_SUPERVISED
from hpt_mlflow.methods import all_options, load_method, options_of
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.settings import AdaptSettings, EvaluateSettings, PretrainSettings, StudySettings, TrainingSettings
from hpt_mlflow.stages.training.resolve import resolve_training

ADDRESSES = {"base": "builtin:mnist", "source": "folder:/x/source", "target": "builtin:digits"}
LETTERS = {"builtin:mnist": "B", "folder:/x/source": "S", "builtin:digits": "T"}
KINDS = {"pretrain": PretrainSettings, "adapt": AdaptSettings, "evaluate": EvaluateSettings}
# What jobs say where the user says nothing.
TRAINING = {
    "method": "moco",
    "preset": "quick",
    "precision": "auto",
    "compile": "auto",
    "cuda_graph": "auto",
    "cache_gib": 4.0,
    "device": "auto",
    "nproc": 1,
    "restarts": 0,
    "checkpoint_every": 1000,
    "model_name": "hpt-study",
    "strict": False,
    "milestones": "100%",
}
EVALUATION = {"device": "auto", "cache_gib": 4.0, "classifier_name": "none", "protocol": "fast", "untrained": False}
BASE = ("pretrain", "B", {"steps": 30})
SOURCE = ("adapt", "S", {"steps": 20})


def settings(study="separability", with_source=False, **said):
    addresses = {name: address for name, address in ADDRESSES.items() if with_source or name != "source"}
    steps = {"steps": 10} | ({"source_steps": 20} if with_source else {})
    if said.get("base_model") is None:
        steps["base_steps"] = 30
    return StudySettings(**({"study": study, "seeds": 1} | addresses | steps | said))


def made(study="separability", seen=1000, network=None, **said):
    return load_study(study).plan(settings(study, **said), seen, network)


def by_point(plan):
    found = {(point.method, point.condition, point.seed): point.evaluation for point in plan.points}
    assert len(found) == len(plan.points)
    return found


def path(last, seed=0):
    """A job and all behind it, oldest first: stage, dataset, and the settings that are not those that all have."""
    told = []
    while last:
        said = dict(last.settings)
        assert (said.pop("seed"), said.pop("split_seed")) == (seed, seed)
        letter = LETTERS[said.pop("data")]
        if last.stage == "adapt":
            assert said.pop("judge") == "none"
        if last.stage == "pretrain":
            assert said.pop("weights") == "random"
        common = EVALUATION if last.stage == "evaluate" else TRAINING
        assert set(common) <= set(said)
        told.insert(0, (last.stage, letter, {k: v for k, v in said.items() if k not in common or v != common[k]}))
        last = last.start
    return told


def trainings(evaluation, seed=0):
    *before, (stage, letter, _) = path(evaluation, seed)
    assert (stage, letter) == ("evaluate", "T")
    return before


def on_target(update=None, **more):
    return ("adapt", "T", {"steps": 10} | ({"update": update} if update else {}) | more)


def alone(**more):
    return ("pretrain", "T", {"steps": 10} | more)


def four(**more):
    """The trainings of the four methods, without a source."""
    return {
        "Base": [BASE, on_target("bn-stats", **more)],
        "Target": [alone(**more)],
        "HPT": [BASE, on_target("all", **more)],
        "HPT-BN": [BASE, on_target("bn", **more)],
    }


# A study for each form that plans take.
FORMS = {
    "separability": {},
    "own lengths": {"own_lengths": True, "milestones": "20%,50%"},
    "over a source": {"with_source": True},
    "registered": {"base_model": "models:/hpt/7", "network": Architecture("resnet18", 64, True)},
    "registered, over a source": {"base_model": "models:/hpt/7", "with_source": True},
    "semi-supervised": {"study": "semi-supervised", "labels": "20,100%", "protocol_steps": 5},
    "sequential": {"study": "sequential", "with_source": True},
    "sequential, registered": {"study": "sequential", "with_source": True, "base_model": "models:/hpt/7"},
    "augmentation": {"study": "augmentation"},
    "every subset": {"study": "augmentation", "every_subset": True},
    "data-amount": {"study": "data-amount", "amounts": "1%,30,100%", "batch_size": 64, "bn_splits": 16},
    "data-amount, registered": {"study": "data-amount", "base_model": "models:/hpt/7"},
    "methods": {"study": "methods"},
    "methods, registered": {"study": "methods", "methods": "lejepa, simclr", "base_model": "models:/hpt/7"},
    "paper's probe": {"protocol": "paper", "protocol_steps": 3, "augment": "crop,flip", "images": "50%"},
    "all named": {
        **{"root": "/x", "small_stem": True, "preset": "paper", "batch_size": 8, "learning_rate": 0.1, "nproc": 2},
        **{"weight_decay": 0.0, "key_momentum": 0.9, "temperature": 0.2, "queue_size": 64, "bn_splits": 2},
        **{"strengths": "hue=0.1", "precision": "float16", "compile": "off", "cache_gib": 0.0, "device": "cpu"},
        **{"restarts": 1, "checkpoint_every": 5, "model_name": "other", "strict": True, "arch": "resnet50"},
        **{"image_size": 48, "seed": 4, "workers": 0},
    },
}


def test_there_is_a_plan_for_each_study():
    assert {FORMS[name].get("study", "separability") for name in FORMS} == set(STUDIES)


@pytest.mark.parametrize("form", FORMS)
def test_the_stages_take_the_settings_of_every_job(form):
    jobs = made(**FORMS[form]).jobs
    assert jobs
    for job in jobs:
        assert job.stage != "pretrain" or job.start is None
        assert job.start or job.stage == "pretrain" or {"parent", "model"} & set(job.settings)
        start = {START_SETTING[job.stage]: "runs:/1234/model"} if job.start else {}
        assert not set(start) & set(job.settings)
        made_of = KINDS[job.stage](**job.settings | start)
        assert {name: getattr(made_of, name) for name in job.settings} == job.settings


@pytest.mark.parametrize("form", FORMS)
def test_every_job_is_there_once_and_behind_its_start(form):
    jobs = made(**FORMS[form], seeds=3).jobs
    assert len(set(jobs)) == len(jobs)
    for number, job in enumerate(jobs):
        assert job.start is None or job.start in jobs[:number]


@pytest.mark.parametrize("form", FORMS)
def test_every_seed_has_the_same_jobs_with_a_seed_and_a_split_of_its_own(form):
    plan = made(**FORMS[form] | {"seed": 5, "seeds": 3})
    told = {}
    for point in plan.points:
        told.setdefault(point.seed, []).append((point.method, point.condition, path(point.evaluation, point.seed)))
    assert list(told) == [5, 6, 7]
    assert told[5] == told[6] == told[7]
    assert len(plan.jobs) == 3 * len(made(**FORMS[form]).jobs)


@pytest.mark.parametrize("form", FORMS)
def test_the_base_is_trained_once_a_seed_or_not_at_all(form):
    jobs = made(**FORMS[form], seeds=3).jobs
    on_base = [job for job in jobs if job.settings["data"] == ADDRESSES["base"]]
    if "base_model" in FORMS[form]:
        assert on_base == []
    else:
        assert [(job.stage, job.settings["seed"]) for job in on_base] == [
            ("pretrain", FORMS[form].get("seed", 0) + seed) for seed in range(3)
        ]


@pytest.mark.parametrize(
    ("form", "beside"),
    [
        ("separability", ("Target", "")),
        ("sequential", ("T", "")),
        ("augmentation", ("Target", "crop,color,gray,blur,flip")),
        ("every subset", ("Target", "crop,color,gray,blur,flip")),
        ("data-amount", ("Target", "100%")),
        ("semi-supervised", None),
    ],
)
def test_an_untrained_network_is_evaluated_once_beside_one_from_random_weights(form, beside):
    found = [point for point, job in by_point(made(**FORMS[form])).items() if job.settings["untrained"]]
    assert found == ([(*beside, 0)] if beside else [])


@pytest.mark.parametrize("form", FORMS)
def test_all_jobs_of_a_study_have_names_of_their_own(form):
    jobs = made(**FORMS[form], seeds=2).jobs
    assert len({job.name for job in jobs}) == len(jobs)


# Separability.


def test_separability_looks_at_the_milestones_of_all_methods_that_learn():
    plan = made(milestones="50%,100%")
    found = by_point(plan)
    assert list(found) == [(method, "", 0) for method in (BASE_AS_IS, *METHODS)]
    expected = four(milestones="50%,100%") | {"Base": four()["Base"], BASE_AS_IS: [BASE]}
    assert {method: trainings(job) for (method, *_), job in found.items()} == expected
    assert {method for (method, *_), job in found.items() if job.whole_run} == set(METHODS)
    assert [path(job)[-1][2] for job in found.values()] == [{}, {}, {"untrained": True}, {}, {}]
    # The Base and its evaluation, four trainings on the target and theirs.
    assert len(plan.jobs) == 10
    assert [job.steps for job in plan.jobs if job.stage != "evaluate"] == [30, 10, 10, 10, 10]


def test_separability_trains_for_each_length_where_it_is_told_to():
    plan = made(**FORMS["own lengths"])
    lengths = (2, 5, 10)
    found = [(point.method, trainings(point.evaluation)) for point in plan.points]
    expected = [(BASE_AS_IS, [BASE]), ("Base", four()["Base"])]
    expected += [(method, four(steps=steps)[method]) for method in ("Target", "HPT", "HPT-BN") for steps in lengths]
    assert found == expected
    # A random network once, beside the longest training of Target.
    untrained = [point.evaluation.settings["untrained"] for point in plan.points if point.method == "Target"]
    assert untrained == [False, False, True]
    # The model of the study is that of its longest training by HPT.
    result = load_study("separability").result(plan)
    assert (result.steps, result.settings["update"]) == (10, "all")
    # The Base once, its statistics on the target, and nine trainings; an evaluation of each.
    assert len(plan.jobs) == 22


def test_only_separability_looks_at_more_than_the_last_step():
    for form in FORMS.values():
        if form.get("study", "separability") != "separability":
            jobs = made(**form).jobs
            assert not any(job.whole_run for job in jobs)
            assert {job.settings["milestones"] for job in jobs if job.stage != "evaluate"} == {"100%"}


def test_hpt_goes_over_the_source_where_there_is_one():
    found = by_point(made(with_source=True, milestones="100%"))
    assert {method: trainings(job) for (method, *_), job in found.items()} == {
        BASE_AS_IS: [BASE],
        "Base": [BASE, on_target("bn-stats")],
        "Target": [alone()],
        "HPT": [BASE, SOURCE, on_target("all")],
        "HPT-BN": [BASE, SOURCE, on_target("bn")],
    }
    assert len(made(with_source=True).jobs) == 11


def test_a_registered_base_is_evaluated_as_it_is():
    found = by_point(made(base_model="models:/hpt/7"))
    evaluation = found[BASE_AS_IS, "", 0]
    assert evaluation.start is None
    assert evaluation.settings["model"] == "models:/hpt/7"
    assert evaluation.name == "evaluate models:/hpt/7, seed 0"


def test_the_source_takes_as_many_steps_as_the_target_where_nothing_is_said():
    jobs = made(with_source=True, source_steps=None).jobs
    assert [job.steps for job in jobs if LETTERS[job.settings["data"]] == "S"] == [10]


@pytest.mark.parametrize(("preset", "base", "target"), [("quick", 600, 200), ("paper", 200_000, 5_000)])
def test_the_preset_says_how_long_trainings_are_where_nothing_else_does(preset, base, target):
    nothing = {"base_steps": None, "steps": None, "source_steps": None}
    jobs = made(with_source=True, preset=preset, **nothing).jobs
    steps = {LETTERS[job.settings["data"]]: set() for job in jobs}
    for job in jobs:
        if job.stage != "evaluate":
            steps[LETTERS[job.settings["data"]]].add(job.steps)
    assert steps == {"B": {base}, "S": {target}, "T": {target}}


def test_a_registered_base_is_not_trained_again():
    model = "models:/hpt/7"
    plan = made(base_model=model, milestones="100%", network=Architecture("resnet50", 64, True))
    assert {method: trainings(job) for (method, *_), job in by_point(plan).items()} == {
        BASE_AS_IS: [],
        "Base": [on_target("bn-stats", parent=model)],
        "Target": [alone(arch="resnet50", image_size=64, small_stem=True)],
        "HPT": [on_target("all", parent=model)],
        "HPT-BN": [on_target("bn", parent=model)],
    }


def test_a_registered_base_goes_over_the_source():
    model = "models:/hpt/7"
    found = by_point(made(base_model=model, with_source=True, milestones="100%"))
    over = ("adapt", "S", {"steps": 20, "parent": model})
    assert trainings(found["HPT", "", 0]) == [over, on_target("all")]
    assert trainings(found["Base", "", 0]) == [on_target("bn-stats", parent=model)]


def test_an_image_size_that_is_said_goes_before_the_registered_base_s():
    network = Architecture("resnet18", 64)
    jobs = made(base_model="models:/hpt/7", network=network).jobs
    assert {job.settings.get("image_size") for job in jobs if job.stage == "adapt"} == {None}
    assert {job.settings.get("image_size") for job in jobs if job.stage == "pretrain"} == {64}
    jobs = made(base_model="models:/hpt/7", image_size=48, network=network).jobs
    assert {job.settings["image_size"] for job in jobs if job.stage != "evaluate"} == {48}


@pytest.mark.parametrize(
    ("said", "of_base", "expected"),
    [(False, None, None), (True, None, True), (False, True, True), (False, False, False)],
)
def test_a_small_stem_is_that_of_what_starts_from_random_weights(said, of_base, expected):
    network = None if of_base is None else Architecture("resnet18", 64, of_base)
    jobs = made(base_model="models:/hpt/7" if network else None, small_stem=said, network=network).jobs
    told = {(job.stage, job.settings.get("small_stem")) for job in jobs if job.stage != "evaluate"}
    # A model that is adapted has a stem.
    assert told == {("pretrain", expected), ("adapt", None)}


def test_a_network_that_is_said_is_that_of_random_weights_alone():
    plan = made(arch="resnet34", image_size=48)
    assert {(job.stage, job.settings.get("arch")) for job in plan.jobs if job.stage != "evaluate"} == {
        ("pretrain", "resnet34"),
        ("adapt", None),
    }
    assert {job.settings["image_size"] for job in plan.jobs if job.stage != "evaluate"} == {48}


def test_fewer_images_are_those_of_the_target_and_augmentations_those_of_all_stages():
    jobs = made(with_source=True, images="50%", augment="crop,flip").jobs
    for job in jobs:
        if job.stage != "evaluate":
            assert job.settings.get("images") == ("50%" if LETTERS[job.settings["data"]] == "T" else None)
            assert job.settings["augment"] == "crop,flip"
    assert {job.settings.get("images") for job in jobs if job.stage == "evaluate"} == {None}


@pytest.mark.parametrize("augment", ["flip,blur,gray,color,crop", "crop, color, gray, blur, flip"])
def test_all_augmentations_in_another_order_are_not_said(augment):
    assert not any("augment" in job.settings for job in made(augment=augment).jobs)


def test_the_paper_s_probe_takes_its_steps_and_the_fast_one_none():
    slow = made(protocol="paper", protocol_steps=7).jobs
    assert {(j.settings["protocol"], j.settings["steps"]) for j in slow if j.stage == "evaluate"} == {("paper", 7)}
    fast = made().jobs
    assert {(j.settings["protocol"], j.settings.get("steps")) for j in fast if j.stage == "evaluate"} == {
        ("fast", None)
    }


# Methods.


@pytest.mark.parametrize("model", [None, "models:/hpt/7"])
def test_methods_adapts_the_base_by_each_method_in_equal_time(model):
    plan = made("methods", steps=120, base_model=model, temperature=0.2)
    found = by_point(plan)
    assert list(found) == [(name, "", 0) for name in (BASE_AS_IS, *SELF_SUPERVISED)]
    for (name, *_), job in found.items():
        if name == BASE_AS_IS:
            continue
        *before, (_, _, said) = trainings(job)
        assert before == ([] if model else [("pretrain", "B", {"steps": 30, "temperature": 0.2})])
        # MoCo passes an image 4 times: forward and backward for the query, and forward for the key.
        assert said["steps"] == round(120 * 4 / load_method(name).passes)
        assert said.get("method", "moco") == name
        # Methods without a temperature are not told of it.
        assert said.get("temperature") == (0.2 if "temperature" in options_of(name) else None)
    assert load_study("methods").result(plan).settings["method"] == "moco"


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ("moco,dinosaur", "'dinosaur' is unknown"),
        ("moco", "two different"),
        ("moco,moco", "two different"),
        (",", "two"),
    ],
)
def test_methods_refuses_what_it_cannot_compare(methods, problem):
    with pytest.raises(HptError, match=problem) as error:
        settings("methods", methods=methods)
    assert error.value.setting == "methods"


# What a study says itself, by stage or by seed.
NOT_PASSED_ON = {
    *("images", "arch", "image_size", "small_stem", "steps", "augment", "seed", "split_seed", "milestones"),
    *("resume", "alias"),
}
OTHERS = {
    **{"root": "/x", "method": "simclr", "preset": "paper", "batch_size": 8, "learning_rate": 0.5, "nproc": 2},
    **{"weight_decay": 0.5, "key_momentum": 0.5, "temperature": 0.5, "queue_size": 64, "bn_splits": 2, "workers": 0},
    **{
        "target_momentum": 0.5,
        "sigreg_weight": 0.5,
        "layer_decay": 0.5,
        "drop_path": 0.5,
        "clip_gradients": 0.5,
        "optimizer": "adamw",
        "teacher_momentum": 0.5,
        "teacher_temperature": 0.5,
        "prototypes": 64,
        "features": "mean",
        "strengths": "hue=0.1",
        "precision": "bfloat16",
        "compile": "off",
        "cuda_graph": "off",
        "cache_gib": 1.0,
        "device": "cpu",
    },
    **{"restarts": 1, "checkpoint_every": 5, "model_name": "other", "strict": True},
}


@pytest.mark.parametrize("name", [f.name for f in fields(TrainingSettings) if f.name not in NOT_PASSED_ON])
def test_what_is_said_about_training_is_said_to_each_training(name):
    others = all_options().keys()
    method = next(
        method for method in ("simclr", "moco", "byol", "lejepa", "dino") if name not in others - options_of(method)
    )
    jobs = made(with_source=True, **{"method": method, name: OTHERS[name]}).jobs
    assert {job.settings.get(name) for job in jobs if job.stage != "evaluate"} == {OTHERS[name]}


@pytest.mark.parametrize(
    ("said", "from_nothing", "from_models"),
    [
        ({}, None, None),
        ({"learning_rate": 0.5}, 0.5, 0.5),
        ({"adapt_learning_rate": 0.25}, None, 0.25),
        ({"learning_rate": 0.5, "adapt_learning_rate": 0.25}, 0.5, 0.25),
    ],
)
def test_what_starts_from_a_model_can_have_a_learning_rate_of_its_own(said, from_nothing, from_models):
    jobs = made("sequential", with_source=True, **said).jobs
    assert {job.settings.get("learning_rate") for job in jobs if job.stage == "pretrain"} == {from_nothing}
    assert {job.settings.get("learning_rate") for job in jobs if job.stage == "adapt"} == {from_models}


@pytest.mark.parametrize("name", ["root", "device", "cache_gib"])
def test_evaluations_are_told_where_to_work(name):
    jobs = made(**{name: OTHERS[name]}).jobs
    assert {job.settings.get(name) for job in jobs if job.stage == "evaluate"} == {OTHERS[name]}


# Semi-supervised.


@pytest.mark.parametrize("protocol", ["fast", "paper"])
def test_semi_supervised_fine_tunes_each_method_on_each_number_of_labels(protocol):
    plan = made("semi-supervised", labels=" 20, 100%,", protocol_steps=5, protocol=protocol)
    found = by_point(plan)
    assert list(found) == [(method, labels, 0) for labels in ("20", "100%") for method in METHODS]
    for (method, labels, _), job in found.items():
        assert trainings(job) == four()[method]
        assert path(job)[-1][2] == {"protocol": "finetune", "labels": labels, "steps": 5}
    # Each model is trained once, whatever it is fine-tuned on.
    assert len(plan.jobs) == 5 + 8


def test_fine_tunings_take_the_paper_s_steps_where_nothing_is_said():
    jobs = made("semi-supervised").jobs
    assert not any("steps" in job.settings for job in jobs if job.stage == "evaluate")


# Sequential.


@pytest.mark.parametrize("model", [None, "models:/hpt/7"])
def test_sequential_makes_each_sequence(model):
    plan = made("sequential", with_source=True, base_model=model)
    parent = {"parent": model} if model else {}
    base = [] if model else [BASE]
    source_alone, over = ("pretrain", "S", {"steps": 20}), ("adapt", "S", {"steps": 20} | parent)
    assert {method: trainings(job) for (method, *_), job in by_point(plan).items()} == {
        "B": [*base, on_target("bn-stats", **parent)],
        "T": [alone()],
        "S": [source_alone, on_target("bn-stats")],
        "B+T": [*base, on_target(**parent)],
        "B+S": [*base, over, on_target("bn-stats")],
        "S+T": [source_alone, on_target()],
        "B+S+T": [*base, over, on_target()],
    }
    assert [point.method for point in plan.points] == ["B", "T", "S", "B+T", "B+S", "S+T", "B+S+T"]
    assert {point.condition for point in plan.points} == {""}
    # On base (unless registered), twice on source, seven times on the target, and as often evaluated.
    assert len(plan.jobs) == len(base) + 2 + 7 + 7


def test_the_networks_of_all_sequences_are_those_of_the_registered_base():
    network = Architecture("resnet34", 64, True)
    plan = made("sequential", with_source=True, base_model="models:/hpt/7", network=network)
    random = [job for job in plan.jobs if job.stage == "pretrain"]
    names = ("arch", "image_size", "small_stem")
    assert [(LETTERS[job.settings["data"]], *(job.settings[name] for name in names)) for job in random] == [
        ("T", *network[:3]),
        ("S", *network[:3]),
    ]


def test_random_weights_have_the_features_of_the_registered_base():
    network = Architecture("timm:vit_tiny_patch16_224", 64, features="mean")
    plan = made("sequential", with_source=True, base_model="models:/hpt/7", network=network)
    assert {job.settings["features"] for job in plan.jobs if job.stage == "pretrain"} == {"mean"}


def test_sequences_are_told_apart_by_their_whole_lineage():
    found = by_point(made("sequential", with_source=True))
    assert found["S+T", "", 0].label == "evaluate adapt digits < source"
    assert found["B+S+T", "", 0].label == "evaluate adapt digits < source < mnist"


# Augmentation.

PAPER_FIVE = [
    *("crop,color,gray,blur,flip", "crop,color,blur,flip", "crop,gray,blur,flip", "crop,blur", "crop"),
]


def test_augmentation_takes_the_paper_s_subsets_from_the_target_s_stage_alone():
    plan = made("augmentation", with_source=True)
    found = by_point(plan)
    assert list(found) == [(method, subset, 0) for subset in PAPER_FIVE for method in ("Target", "HPT")]
    for (method, subset, _), job in found.items():
        start = [] if method == "Target" else [BASE, SOURCE]
        # All of them is what other studies take.
        chosen = {} if subset == PAPER_FIVE[0] else {"augment": subset}
        last = alone(**chosen) if method == "Target" else on_target("all", **chosen)
        assert trainings(job) == [*start, last]
    assert len(plan.jobs) == 2 + 10 + 10


def test_augmentation_takes_all_32_subsets_where_that_is_asked_for():
    plan = made("augmentation", every_subset=True)
    names = PAPER_FIVE[0].split(",")
    subsets = {",".join(subset) or "none" for size in range(6) for subset in combinations(names, size)}
    assert len(subsets) == 32
    found = by_point(plan)
    assert set(found) == {(method, subset, 0) for subset in subsets for method in ("Target", "HPT")}
    # The first is what the others are compared with.
    assert plan.points[0].condition == PAPER_FIVE[0]
    for (_, subset, _), job in found.items():
        assert job.start.settings.get("augment", PAPER_FIVE[0]) == subset
    assert len(plan.jobs) == 1 + 64 + 64


# Data-amount.


def test_data_amount_takes_each_share_of_the_target_s_images():
    plan = made("data-amount", amounts="1%, 30,100%")
    found = by_point(plan)
    assert list(found) == [(method, amount, 0) for amount in ("1%", "30", "100%") for method in METHODS]
    for (method, amount, _), job in found.items():
        assert trainings(job) == (four() if amount == "100%" else four(images=amount))[method]
        assert "images" not in job.settings
    assert len(plan.jobs) == 1 + 12 + 12


def test_trainings_on_all_images_are_those_of_other_studies():
    sizes = {"batch_size": 64, "bn_splits": 16, "seeds": 2}
    last = {p.evaluation.start for p in made("data-amount", amounts="1%,100%", **sizes).points if p.condition != "1%"}
    others = {point.evaluation.start for point in made("semi-supervised", **sizes).points}
    assert last == others
    assert len(last) == 8


def sizes(plan):
    """What trainings on the target are told of batches, by share."""
    told = {}
    for point in plan.points:
        said = point.evaluation.start.settings
        told.setdefault(point.condition, set()).add((said.get("batch_size"), said.get("bn_splits")))
    assert {len(found) for found in told.values()} == {1}
    return {share: found.pop() for share, found in told.items()}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, (None, None)),
        ({"batch_size": 9, "bn_splits": 4}, (9, 4)),
        ({"batch_size": 10, "bn_splits": 5}, (10, 5)),
        ({"batch_size": 11, "bn_splits": 5}, (10, 5)),
        ({"batch_size": 10, "bn_splits": 6}, (10, 5)),
        ({"batch_size": 64, "bn_splits": 16}, (10, 5)),
        ({"batch_size": 64}, (10, None)),
        ({"bn_splits": 16}, (None, 5)),
    ],
)
@pytest.mark.parametrize("amount", ["1%", "10"])
def test_sizes_that_are_named_are_cut_to_what_few_images_can_fill(amount, named, expected):
    assert sizes(made("data-amount", amounts=amount, seen=1000, **named)) == {amount: expected}


def test_where_there_are_enough_images_nothing_is_cut():
    told = sizes(made("data-amount", amounts="1%,50%,100%", batch_size=64, bn_splits=16))
    assert told == {"1%": (10, 5), "50%": (64, 16), "100%": (64, 16)}


def test_very_few_images_leave_a_batch_of_two():
    told = sizes(made("data-amount", amounts="0.1%,1%,3", seen=100, batch_size=64, bn_splits=16))
    assert told == {"0.1%": (2, 1), "1%": (2, 1), "3": (3, 1)}


def test_the_base_and_other_studies_keep_the_sizes_that_are_named():
    plan = made("data-amount", amounts="1%", batch_size=64, bn_splits=16)
    assert (plan.jobs[0].settings["batch_size"], plan.jobs[0].settings["bn_splits"]) == (64, 16)
    others = made(seen=10, batch_size=64).jobs
    assert {job.settings["batch_size"] for job in others if job.stage != "evaluate"} == {64}


@pytest.mark.parametrize(
    ("nproc", "images", "expected"),
    [
        *[(2, 4, (4, 2)), (2, 7, (6, 2)), (2, 9, (8, 4)), (2, 10, (10, 4)), (2, 59, (58, 28)), (2, 61, (60, 30))],
        *[(3, 6, (6, 3)), (3, 11, (9, 3)), (3, 12, (12, 6)), (3, 66, (60, 30)), (1, 59, (59, 29))],
        # Of too few images for all, each process would have two.
        (3, 4, (6, 3)),
    ],
)
def test_sizes_are_cut_to_what_all_processes_can_share(nproc, images, expected):
    plan = made("data-amount", amounts=str(images), batch_size=60, bn_splits=30, nproc=nproc)
    assert sizes(plan) == {str(images): expected}


@pytest.mark.parametrize("nproc", [1, 2, 3, 4])
@pytest.mark.parametrize("named", [("batch_size",), ("bn_splits",), ("batch_size", "bn_splits")])
def test_the_stage_refuses_no_size_that_is_cut(nproc, named):
    said = {name: size for name, size in (("batch_size", 60), ("bn_splits", 24)) if name in named}
    amounts = [str(count) for count in range(2 * nproc, 70)]
    points = made("data-amount", amounts=",".join(amounts), nproc=nproc, **said).points
    for point in (point for point in points if point.method == "Target"):
        training = PretrainSettings(**point.evaluation.start.settings)
        plan = resolve_training(training, "few", int(point.condition), nproc)
        assert plan.batch_size % nproc == plan.options["bn_splits"] % nproc == 0


def test_amounts_go_from_few_images_to_many():
    plan = made(study="data-amount", amounts="100%,5,10%")
    assert list(dict.fromkeys(point.condition for point in plan.points)) == ["5", "10%", "100%"]
