import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.settings import AdaptSettings, PretrainSettings
from hpt_mlflow.stages.training.resolve import resolve_local_views, resolve_training


@pytest.fixture
def fitted():
    """A function from the number of images and of processes to the plan of the quick preset."""

    def fit(count, processes, **settings):
        return resolve_training(PretrainSettings(weights="random", **settings), "few", count, processes)

    return fit


@pytest.mark.parametrize(
    ("count", "processes", "settings", "batch_size", "bn_splits", "queue_size"),
    [
        (10_000, 1, {}, 256, 4, 4096),
        (10_000, 2, {}, 256, 4, 4096),
        (10_000, 4, {}, 256, 4, 4096),
        # At least one part each.
        (10_000, 8, {}, 256, 8, 4096),
        # 255 is the largest multiple below the preset's; 4 parts cannot be shared by 3.
        (10_000, 3, {}, 255, 3, 4080),
        (10_000, 6, {}, 252, 6, 4032),
        (100, 1, {}, 100, 4, 100),
        (101, 2, {}, 100, 4, 100),
        (101, 3, {}, 99, 3, 99),
        (1000, 2, {"batch_size": 64}, 64, 4, 960),
        (1000, 2, {"batch_size": 64, "bn_splits": 8}, 64, 8, 960),
        (1000, 4, {"batch_size": 64, "bn_splits": 4, "queue_size": 100}, 64, 4, 64),
        # Every part has two images or more.
        (1000, 2, {"batch_size": 6}, 6, 2, 996),
        (5, 2, {}, 4, 2, 4),
        (4, 2, {}, 4, 2, 4),
        (2, 1, {}, 2, 1, 2),
    ],
)
def test_a_plan_is_shared_equally(fitted, count, processes, settings, batch_size, bn_splits, queue_size):
    plan = fitted(count, processes, **settings)
    assert plan.batch_size == batch_size
    assert (plan.options["bn_splits"], plan.options["queue_size"]) == (bn_splits, queue_size)


@pytest.mark.parametrize(
    ("count", "processes", "settings", "words"),
    [
        (1, 1, {}, "leaves 1 images to learn from; at least 2 are needed"),
        (3, 2, {}, "nproc: 3 images are too few for 2 processes of at least 2 each"),
        (15, 8, {}, "nproc: 15 images are too few for 8 processes"),
        (
            100,
            2,
            {"batch_size": 31},
            "batch_size: 31 images cannot be shared equally by 2 processes; use a multiple of 2",
        ),
        (100, 3, {"batch_size": 32}, "use a multiple of 3"),
        (100, 2, {"batch_size": 102}, "batch_size: 102 is more than the 100 images"),
        (100, 2, {"bn_splits": 3}, "bn_splits: 3 parts cannot be shared equally by 2 processes; use a multiple of 2"),
        (100, 4, {"bn_splits": 2}, "use a multiple of 4"),
        (100, 2, {"batch_size": 8, "bn_splits": 6}, "bn_splits: 6 parts of a batch of 8 have fewer than 2 images each"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(fitted, count, processes, settings, words):
    with pytest.raises(HptError, match=words) as caught:
        fitted(count, processes, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_a_share_of_one_image_is_refused(fitted, processes):
    """BatchNorm cannot learn from one."""
    with pytest.raises(HptError, match=r"^batch_size: "):
        fitted(100, processes, batch_size=processes)


@pytest.mark.parametrize(
    ("settings", "starts_from", "optimizer", "statistics"),
    [
        ({}, "efficientnet-lite0", "adamw", "keep"),
        ({"preset": "quick"}, "efficientnet-lite0", "sgd", "refresh"),
        ({"weights": "moco.pth", "arch": "resnet50"}, "moco.pth", "adamw", "keep"),
        ({"weights": "random"}, None, "sgd", "refresh"),
        ({"arch": "resnet50"}, None, "sgd", "refresh"),
        ({"preset": "paper"}, None, "sgd", "refresh"),
    ],
)
def test_only_what_starts_from_weights_is_trained_gently(settings, starts_from, optimizer, statistics):
    chosen = PretrainSettings(**settings)
    plan = resolve_training(chosen, "images", 1000)
    assert (chosen.starts_from, plan.optimizer, plan.statistics) == (starts_from, optimizer, statistics)


@pytest.mark.parametrize(
    ("origin", "settings", "rate"),
    [
        ("published", AdaptSettings(), 3e-4),
        ("random", AdaptSettings(), 1e-4),
        ("random", AdaptSettings(learning_rate=0.01), 0.01),
        ("random", AdaptSettings(preset="quick"), 0.03),
        ("random", PretrainSettings(weights="random"), 0.12),
    ],
)
def test_a_base_of_ones_own_takes_smaller_steps(origin, settings, rate):
    assert resolve_training(settings, "images", 1000, origin=origin).learning_rate == rate


@pytest.mark.parametrize(
    ("settings", "origin", "has_batch_norm", "optimizer", "rate", "decay", "head_rate"),
    [
        (PretrainSettings(weights="random"), "random", False, "adamw", 5e-4, 0.05, 1),
        (PretrainSettings(weights="random", optimizer="sgd"), "random", False, "sgd", 0.12, 1e-4, 1),
        (
            PretrainSettings(weights="random", optimizer="adamw", learning_rate=1e-3),
            "random",
            True,
            "adamw",
            1e-3,
            0.05,
            1,
        ),
        (AdaptSettings(preset="quick"), "published", False, "adamw", 3e-4, 0.01, 10),
        (AdaptSettings(optimizer="sgd"), "random", True, "sgd", 0.03, 1e-4, 1),
        (AdaptSettings(optimizer="adamw"), "random", True, "adamw", 1e-4, 0.01, 10),
        (AdaptSettings(), "random", False, "adamw", 1e-4, 0.01, 10),
        (AdaptSettings(preset="quick"), "random", False, "adamw", 1e-4, 0.01, 10),
    ],
)
def test_an_optimiser_comes_with_what_suits_it(settings, origin, has_batch_norm, optimizer, rate, decay, head_rate):
    plan = resolve_training(settings, "images", 1000, origin=origin, has_batch_norm=has_batch_norm)
    assert (plan.optimizer, plan.learning_rate, plan.weight_decay, plan.head_rate) == (
        optimizer,
        rate,
        decay,
        head_rate,
    )


@pytest.mark.parametrize(
    ("update", "factor"),
    [("all", 1), ("norm", 10), ("bn", 10), ("lora", 10), ("last:2", 1), ("explora", 3), ("explora:2", 3)],
)
@pytest.mark.parametrize("origin", ["published", "random"])
def test_what_touches_little_takes_larger_steps_and_its_head_the_same(update, factor, origin):
    plans = [resolve_training(AdaptSettings(update=kind), "images", 1000, origin=origin) for kind in ("all", update)]
    rates = [plan.learning_rate for plan in plans]
    assert rates[1] == pytest.approx(factor * rates[0])
    assert rates[1] * plans[1].head_rate == pytest.approx(rates[0] * plans[0].head_rate)


@pytest.mark.parametrize("settings", [{"learning_rate": 0.01}, {"preset": "quick"}])
def test_a_rate_of_the_user_or_of_sgd_is_that_of_every_update(settings):
    rates = {
        resolve_training(AdaptSettings(update=update, **settings), "images", 1000).learning_rate
        for update in ("all", "bn", "norm")
    }
    assert len(rates) == 1


def test_small_views_have_a_side_that_suits_the_network():
    architecture = Architecture("timm:vit_tiny_patch16_224", 64)
    network, _ = build_backbone(architecture)
    network.train()
    assert resolve_local_views("dino", network, architecture) == (8, 32)
    assert resolve_local_views("moco", network, architecture) == (0, 0)
    assert network.training


def test_a_network_that_cannot_take_small_views_is_refused():
    architecture = Architecture("densenet121", 32)
    network, _ = build_backbone(architecture)
    with pytest.raises(HptError) as caught:
        resolve_local_views("dino", network, architecture)
    assert str(caught.value).startswith(
        "arch: dino also has views of 14 pixels, which densenet121 of 32 pixels cannot take; use "
    )
