from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import Split, unlabelled_split
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader, prepare
from hpt_mlflow.evaluation.objectives import OBJECTIVES, base, load_judge, maximises
from hpt_mlflow.evaluation.objectives import probe as probe_judge
from hpt_mlflow.evaluation.objectives.base import make_judge
from hpt_mlflow.evaluation.objectives.consistency import agreement, nearest

CPU = torch.device("cpu")
STATISTICS = ChannelStatistics((0.3, 0.3, 0.3), (0.35, 0.35, 0.35))
JUDGED = ("probe", "knn", "rotation")
NEED_LABELS = ("probe", "knn")
DIGITS = open_dataset("builtin:digits")
SIZE = 8
# Fewer digits than there are, so that a score takes a tenth of a second.
SPLIT = Split(*(np.sort(part) for part in np.split(np.random.default_rng(5).permutation(400), [200, 300])))
CURVED, LARGE = np.isin(DIGITS.labels, (0, 3, 6, 8, 9)), DIGITS.labels > 4
SEVERAL = np.stack([CURVED, LARGE, DIGITS.labels == 1], axis=1).astype(np.uint8)


class Tally(list):
    """What copies of a network share."""

    def __deepcopy__(self, memo):
        return self


class Drawing(nn.Module):
    """A layer that draws in evaluation mode too."""

    def forward(self, batch):
        return batch + 1e-6 * torch.rand(batch.shape)


def network(seed=0):
    """A small network that has seen a few images, so that its BatchNorm has statistics of its own."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
    )
    layers(torch.randn(16, 3, SIZE, SIZE))
    return layers


def reader_of(dataset=DIGITS, indices=None, **more):
    indices = np.arange(len(dataset)) if indices is None else indices
    images = Images(dataset, indices, smallest_side=4096, **more)
    return FeatureReader(images, SIZE, STATISTICS, CPU, batch_size=64, threads=1)


@pytest.fixture(scope="module")
def reader():
    return reader_of()


@pytest.fixture
def one_round(monkeypatch):
    """As many images as there are in validation are enough."""
    monkeypatch.setattr(base, "ENOUGH_EXAMPLES", 0)


def only_round(judge):
    ((train, validation),) = judge.rounds
    return train, validation


def plain_features(backbone, arrays):
    """By an ordinary forward pass of a copy."""
    copied = network()
    copied.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        return copied.eval()(prepare(arrays, SIZE, STATISTICS)).numpy()


def colours(indices):
    """The digits as they are decoded, uint8 (8, 8, 3), straight from the dataset."""
    return [np.repeat(np.asarray(DIGITS.pictures[i])[:, :, None], 3, axis=2) for i in indices]


def by_sklearn(features, labels, asked, truth):
    """Accuracy of logistic regression, of the best regularisation."""
    scores = []
    for regularisation in probe_judge.REGULARISATIONS:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=3000, tol=1e-6))
        scores.append(classifier.fit(features.astype(np.float64), labels).score(asked, truth))
    return max(scores)


def test_infonce_alone_is_minimised():
    assert {objective: maximises(objective) for objective in OBJECTIVES} == {
        "probe": True,
        "knn": True,
        "rotation": True,
        "consistency": True,
        "infonce": False,
    }


def votes_by_hand(known, known_labels, asked):
    """For each image, the share of the weight of its 20 nearest that has each label, in float64."""
    known, asked = (f.astype(np.float64) / np.linalg.norm(f, axis=1, keepdims=True) for f in (known, asked))
    shares = []
    for similarities in asked @ known.T:
        nearest = np.argsort(-similarities)[:20]
        weights = np.exp(similarities[nearest] / 0.07)
        shares.append(weights @ known_labels[nearest] / weights.sum())
    return np.array(shares)


def turned_by_hand(backbone, part):
    """Features of images that NumPy turned, all of one turn after all of another, and their turns."""
    images = [np.ascontiguousarray(np.rot90(array, turn)) for turn in range(4) for array in colours(part)]
    return plain_features(backbone, images), np.repeat(np.arange(4), len(part))


def test_neighbours_are_compared_one_by_one():
    rng = np.random.default_rng(3)
    images, views = rng.standard_normal((2, 30, 4)).astype(np.float32)

    def neighbours(query, own):
        similarity = images @ query / np.linalg.norm(images, axis=1)
        return set([i for i in np.argsort(-similarity) if i != own][:10])

    shared = [len(neighbours(images[i], i) & neighbours(views[i], i)) for i in range(30)]
    found = agreement(*(nearest(torch.from_numpy(side), torch.from_numpy(images)) for side in (images, views)))
    assert found == pytest.approx(np.mean(shared) / 10)


def test_features_that_do_not_change_with_the_view_are_consistent(reader):
    class Constant(nn.Module):
        """Features that tell images apart by their order in the batch, which view and image share."""

        def forward(self, batch):
            half = len(batch) // 2
            angle = torch.arange(half).repeat(2)[:, None] * 0.01
            return torch.cat([angle.cos(), angle.sin()], dim=1)

    judge = make_judge("consistency", replace(reader, batch_size=1000), SPLIT, None, most=200)
    assert judge.score(Constant()) == pytest.approx(1, abs=0.02)
    assert 0 < judge.score(network()) < 0.9


def test_the_views_of_a_judge_are_always_the_same(reader):
    judge = make_judge("consistency", reader, SPLIT, None)
    first, again = judge.score(network()), judge.score(network())
    assert first == again
    diverged = network()
    list(diverged.modules())[-1].register_forward_hook(lambda module, inputs, output: output * torch.nan)
    assert np.isnan(judge.score(diverged))


def test_rotation_cannot_be_told_by_features_that_do_not_change_with_it(reader):
    whole = nn.AdaptiveAvgPool2d(1)
    assert make_judge("rotation", reader, SPLIT, None).score(whole) == pytest.approx(0.25, abs=0.05)


def test_turned_images_are_as_many_in_a_pass_as_the_reader_allows(reader):
    passes = Tally()

    class Counting(nn.Module):
        def forward(self, batch):
            passes.append(len(batch))
            return batch

    judge = make_judge("rotation", replace(reader, batch_size=40), SPLIT, None)
    judge.score(nn.Sequential(Counting(), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2)))
    assert passes == [40] * len(passes) != []
    few = make_judge("rotation", replace(reader, batch_size=3), SPLIT, None)
    assert few.score(network()) == pytest.approx(judge.score(network()), abs=0.011)


def assert_same_rounds(rounds, expected):
    for parts, expected_parts in zip(rounds, expected, strict=True):
        for part, expected_part in zip(parts, expected_parts, strict=True):
            np.testing.assert_array_equal(part, expected_part)


@pytest.mark.parametrize("objective", JUDGED)
def test_the_parts_of_the_split_judge_where_enough_images_are_validation(reader, objective):
    turns = 4 if objective == "rotation" else 1
    some = np.random.default_rng(6).permutation(len(DIGITS))[:1500]
    enough, too_few = (Split(np.sort(some[n:]), np.sort(some[:n]), SPLIT.test) for n in (1000 // turns, 999 // turns))
    one = make_judge(objective, reader, enough, DIGITS.labels).rounds
    assert_same_rounds(one, [(enough.train, enough.validation)])
    assert len(make_judge(objective, reader, too_few, DIGITS.labels).rounds) == 5


CROSS_VALIDATED = [
    *((objective, labels) for objective in JUDGED for labels in (DIGITS.labels, SEVERAL)),
    ("rotation", None),
]


@pytest.mark.parametrize(("objective", "labels"), CROSS_VALIDATED)
def test_each_image_of_train_and_validation_judges_once_by_what_all_others_teach(reader, objective, labels):
    rounds = make_judge(objective, reader, SPLIT, labels).rounds
    judging = np.concatenate([validation for _, validation in rounds])
    np.testing.assert_array_equal(np.sort(judging), SPLIT.seen)
    assert [len(validation) for _, validation in rounds] == [60] * 5
    for train, validation in rounds:
        assert train.dtype == validation.dtype == np.int64
        assert (np.diff(validation) > 0).all()
        np.testing.assert_array_equal(train, np.setdiff1d(SPLIT.seen, validation))


def test_the_rounds_are_the_same_again_whatever_was_drawn(reader):
    first = make_judge("knn", reader, SPLIT, DIGITS.labels)
    np.random.seed(8)
    assert_same_rounds(make_judge("knn", reader_of(), SPLIT, DIGITS.labels).rounds, first.rounds)


def test_each_class_is_spread_evenly_over_the_rounds(reader):
    rounds = make_judge("probe", reader, SPLIT, DIGITS.labels).rounds
    counts = np.array([np.bincount(DIGITS.labels[validation], minlength=10) for _, validation in rounds])
    assert (np.ptp(counts, axis=0) <= 1).all()


# Of many sizes, and of one class each or of several.
GROUPS_OF_A_CLASS = 100 * DIGITS.labels + np.floor(7 * np.random.default_rng(1).random(len(DIGITS)) ** 2).astype(int)
MIXED_GROUPS = np.floor(70 * np.random.default_rng(2).random(len(DIGITS)) ** 2).astype(int)


@pytest.mark.parametrize(
    ("objective", "labels", "groups"),
    [
        ("knn", DIGITS.labels, GROUPS_OF_A_CLASS),
        ("knn", DIGITS.labels, MIXED_GROUPS),
        ("knn", SEVERAL, MIXED_GROUPS),
        ("rotation", None, MIXED_GROUPS),
    ],
)
def test_whole_groups_judge_together_and_come_evenly_into_the_rounds(objective, labels, groups):
    rounds = make_judge(objective, reader_of(replace(DIGITS, groups=groups)), SPLIT, labels).rounds
    np.testing.assert_array_equal(np.sort(np.concatenate([validation for _, validation in rounds])), SPLIT.seen)
    assert all(not np.intersect1d(groups[train], groups[validation]).size for train, validation in rounds)
    of_rounds = [np.unique(groups[validation]) for _, validation in rounds]
    assert len(rounds) == 5
    assert np.ptp([len(of_round) for of_round in of_rounds]) <= 1
    if groups is GROUPS_OF_A_CLASS:
        assert (np.ptp([np.bincount(each // 100, minlength=10) for each in of_rounds], axis=0) <= 1).all()


@pytest.mark.parametrize("count", [2, 3])
def test_fewer_groups_than_rounds_judge_in_a_round_each(count):
    groups = np.arange(len(DIGITS)) % count
    rounds = make_judge("knn", reader_of(replace(DIGITS, groups=groups)), SPLIT, DIGITS.labels).rounds
    parts = sorted(SPLIT.seen[SPLIT.seen % count == i].tolist() for i in range(count))
    assert sorted(validation.tolist() for _, validation in rounds) == parts


@pytest.mark.parametrize("objective", JUDGED)
def test_four_images_judge_in_a_round_each(reader, objective):
    zeros, ones = (np.flatnonzero(DIGITS.labels == digit)[:2] for digit in (0, 1))
    split = Split(np.sort([zeros[0], ones[0]]), np.sort([zeros[1], ones[1]]), SPLIT.test)
    judge = make_judge(objective, reader, split, DIGITS.labels)
    assert sorted(validation.tolist() for _, validation in judge.rounds) == [[i] for i in split.seen]
    assert all(len(train) == 3 for train, _ in judge.rounds)
    assert judge.score(network()) * (16 if objective == "rotation" else 4) % 1 == 0


def by_hand(objective, backbone, part):
    if objective == "rotation":
        return turned_by_hand(backbone, part)
    return plain_features(backbone, colours(part)), DIGITS.labels[part]


def neighbours_by_hand(features, labels, asked, truth):
    return (votes_by_hand(features, np.eye(10)[labels], asked).argmax(axis=1) == truth).mean()


@pytest.mark.parametrize("objective", JUDGED)
def test_the_score_is_the_share_of_right_answers_in_all_rounds_together(objective):
    backbone, few = network(), Split(SPLIT.train[:60], SPLIT.validation[:40], SPLIT.test)
    judge = make_judge(objective, reader_of(replace(DIGITS, groups=MIXED_GROUPS)), few, DIGITS.labels)
    share_of = neighbours_by_hand if objective == "knn" else by_sklearn
    shares = [share_of(*(x for part in both for x in by_hand(objective, backbone, part))) for both in judge.rounds]
    expected = np.average(shares, weights=[len(validation) for _, validation in judge.rounds])
    assert judge.score(backbone) == pytest.approx(expected, abs=0.011)


def test_the_score_of_several_labels_is_the_area_under_the_curve_of_all_rounds_together(reader):
    backbone = network(1)
    judges = {objective: make_judge(objective, reader, SPLIT, SEVERAL) for objective in ("knn", "probe")}
    votes, probabilities, truth = [], [], []
    for train, validation in judges["knn"].rounds:
        known, asked = (plain_features(backbone, colours(part)) for part in (train, validation))
        truth.append(SEVERAL[validation])
        votes.append(votes_by_hand(known, SEVERAL[train], asked))
        of_each = []
        for regularisation in probe_judge.REGULARISATIONS:
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=3000))
            each = [classifier.fit(known, labels).predict_proba(asked)[:, 1] for labels in SEVERAL[train].T]
            of_each.append(np.stack(each, axis=1))
        probabilities.append(max(of_each, key=lambda answers: roc_auc_score(SEVERAL[validation], answers)))
    # The mean of the areas of each round is higher by 0.0014.
    expected = roc_auc_score(np.concatenate(truth), np.concatenate(votes))
    assert judges["knn"].score(backbone) == pytest.approx(expected, abs=5e-4)
    expected = roc_auc_score(np.concatenate(truth), np.concatenate(probabilities))
    assert judges["probe"].score(backbone) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("objective", NEED_LABELS)
def test_a_class_that_is_one_group_is_never_told(objective):
    reader = reader_of(replace(DIGITS, groups=DIGITS.labels))
    assert make_judge(objective, reader, SPLIT, DIGITS.labels).score(network()) == 0


def everything(backbone):
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in backbone.parameters()]
    modes = [layer.training for layer in backbone.modules()]
    layouts = [(p.stride(), p.requires_grad, p.data_ptr()) for p in backbone.parameters()]
    return state, gradients, modes, layouts


@pytest.mark.parametrize("objective", JUDGED)
@pytest.mark.parametrize("training", [True, False])
def test_the_backbone_is_left_as_it_was_bit_for_bit_and_trains_on(reader, objective, training):
    def trained(judged):
        torch.manual_seed(3)
        backbone = nn.Sequential(*network(), Drawing(), nn.Dropout(0.3), nn.Linear(72, 20)).train(training)
        backbone[1].eval()
        backbone[0].weight.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        for step in range(3):
            backbone(torch.randn(8, 3, SIZE, SIZE)).square().mean().backward()
            optimizer.step()
            if judged and step == 1:
                before, draws = everything(backbone), torch.get_rng_state()
                assert 0 < make_judge(objective, reader, SPLIT, DIGITS.labels).score(backbone) < 1
                after = everything(backbone)
                assert torch.equal(torch.get_rng_state(), draws)
                assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
                assert [g is None for g in before[1]] == [g is None for g in after[1]] == [True] + [False] * 4
                assert all(torch.equal(a, b) for a, b in zip(before[1][1:], after[1][1:], strict=True))
                assert before[2:] == after[2:]
            optimizer.zero_grad()
        return backbone.state_dict()

    plain, interrupted = trained(judged=False), trained(judged=True)
    assert all(torch.equal(interrupted[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("objective", JUDGED)
def test_a_backbone_is_judged_as_it_is_in_evaluation_mode(reader, objective):
    judge = make_judge(objective, reader, SPLIT, DIGITS.labels)
    backbone = nn.Sequential(*network(), nn.Dropout(0.9))
    assert judge.score(backbone.train()) == judge.score(backbone.eval()) == judge.score(network())


@pytest.mark.parametrize("objective", JUDGED)
def test_the_same_backbone_gets_the_same_score_and_another_one_another(reader, objective):
    backbone = network()
    scores = {make_judge(objective, reader, SPLIT, DIGITS.labels).score(backbone) for _ in range(2)}
    assert len(scores) == 1
    mean_colour = nn.AdaptiveAvgPool2d(1)
    assert scores != {make_judge(objective, reader, SPLIT, DIGITS.labels).score(mean_colour)}


@pytest.mark.parametrize("objective", JUDGED)
@pytest.mark.parametrize("labels", [DIGITS.labels, SEVERAL])
def test_a_backbone_that_diverged_has_no_score(reader, objective, labels):
    backbone = network()
    with torch.no_grad():
        backbone[1].weight[2] = float("nan")
    assert np.isnan(make_judge(objective, reader, SPLIT, labels).score(backbone))


@pytest.mark.parametrize("objective", JUDGED)
@pytest.mark.parametrize("labels", [DIGITS.labels, SEVERAL])
def test_no_image_of_test_is_asked_for_and_all_others_are(reader, objective, labels, monkeypatch):
    asked = []
    plain = Images.__getitem__

    def watched(images, index):
        asked.append(index)
        return plain(images, index)

    monkeypatch.setattr(Images, "__getitem__", watched)
    # Of test the labels are wrong; those of classes are none at all.
    labels = labels.copy()
    labels[SPLIT.test] = 1 - labels[SPLIT.test]
    judge = make_judge(objective, reader, SPLIT, labels)
    judge.score(network())
    assert sorted(asked) == SPLIT.seen.tolist()


def test_no_image_of_test_is_judged_where_nothing_is_labelled(reader):
    split = unlabelled_split(400, SPLIT.test)
    for train, validation in make_judge("rotation", reader, split, None).rounds:
        np.testing.assert_array_equal(np.union1d(train, validation), split.train)


@pytest.mark.usefixtures("one_round")
def test_without_labels_a_fifth_of_train_is_held_out(reader):
    split = unlabelled_split(300)
    judge = make_judge("rotation", reader, split, None)
    train, validation = only_round(judge)
    assert (len(train), len(validation)) == (240, 60)
    assert not np.intersect1d(train, validation).size
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    # From the beginning, the middle and the end, which may be of different kinds.
    assert (np.histogram(validation, 3, (0, 300))[0] > 8).all()
    again = make_judge("rotation", reader, split, None)
    np.testing.assert_array_equal(validation, only_round(again)[1])
    by_hand = (turned_by_hand(network(), part) for part in (train, validation))
    (features, turns), (asked, truth) = by_hand
    assert judge.score(network()) == pytest.approx(by_sklearn(features, turns, asked, truth), abs=0.011)


@pytest.mark.usefixtures("one_round")
def test_whole_groups_are_held_out():
    groups = np.arange(len(DIGITS)) // 9
    judge = make_judge("rotation", reader_of(replace(DIGITS, groups=groups)), unlabelled_split(450), None)
    train, validation = only_round(judge)
    assert not np.intersect1d(groups[train], groups[validation]).size
    assert (len(train), len(validation)) == (360, 90)


@pytest.mark.usefixtures("one_round")
def test_labelled_images_are_held_out_only_where_the_split_has_no_validation(reader):
    with_validation = make_judge("rotation", reader, SPLIT, DIGITS.labels)
    np.testing.assert_array_equal(only_round(with_validation)[1], SPLIT.validation)
    nothing = replace(SPLIT, validation=np.array([], dtype=np.int64))
    train, validation = only_round(make_judge("rotation", reader, nothing, DIGITS.labels))
    np.testing.assert_array_equal(np.union1d(train, validation), SPLIT.train)
    assert len(validation) == 40


@pytest.mark.usefixtures("one_round")
@pytest.mark.parametrize("objective", JUDGED)
def test_so_many_images_judge_at_most_and_they_are_drawn(reader, objective, monkeypatch):
    assert (base.TRAIN_EXAMPLES, base.VALIDATION_EXAMPLES) == (5000, 2000)
    monkeypatch.setattr(base, "TRAIN_EXAMPLES", 50)
    monkeypatch.setattr(base, "VALIDATION_EXAMPLES", 30)
    turns = 4 if objective == "rotation" else 1
    judge, again = (make_judge(objective, reader, SPLIT, DIGITS.labels) for _ in range(2))
    parts, most_of_each = (SPLIT.train, SPLIT.validation), (50 // turns, 30 // turns)
    for part, drawn, same, most in zip(parts, only_round(judge), only_round(again), most_of_each, strict=True):
        assert len(drawn) == most
        assert np.isin(drawn, part).all()
        assert (np.diff(drawn) > 0).all()
        np.testing.assert_array_equal(drawn, same)
        # Of the first, the middle and the last.
        assert (np.histogram(np.searchsorted(part, drawn), 3, (0, len(part)))[0] > most / 8).all()
    few = Split(*only_round(judge), SPLIT.test)
    assert judge.score(network()) == make_judge(objective, reader, few, DIGITS.labels).score(network())


@pytest.mark.usefixtures("one_round")
def test_images_that_cannot_be_read_do_not_judge_and_change_nothing_about_the_others(reader, monkeypatch):
    monkeypatch.setattr(base, "TRAIN_EXAMPLES", 50)
    monkeypatch.setattr(base, "VALIDATION_EXAMPLES", 30)
    whole = only_round(make_judge("knn", reader, SPLIT, DIGITS.labels))
    gone = [int(whole[0][20]), int(whole[1][3])]
    images = reader_of(known_unreadable=dict.fromkeys(gone, "gone")).images
    judge = make_judge("knn", replace(reader, images=images), SPLIT, DIGITS.labels)
    for before, after in zip(whole, only_round(judge), strict=True):
        assert len(after) == len(before)
        assert len(np.intersect1d(before, after)) == len(before) - 1
        assert not np.isin(gone, after).any()


@pytest.fixture
def files(tmp_path):
    """400 digits as files that are read each time."""
    paths = []
    for i, array in enumerate(colours(range(400))):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(array).save(paths[-1])
    names = [path.name for path in paths]
    return Dataset("files", "test:files", paths, names, DIGITS.labels[:400], DIGITS.classes)


@pytest.mark.parametrize("objective", JUDGED)
def test_images_that_vanish_are_left_out_and_reported(files, objective):
    reader = reader_of(files, memory_limit_bytes=0)
    judge = make_judge(objective, reader, SPLIT, files.labels)
    gone = [*SPLIT.train[[0, 70]].tolist(), *SPLIT.validation[[5, 99]].tolist()]
    for index in gone:
        files.pictures[index].unlink()
    score = judge.score(network())
    assert set(reader.images.unreadable) == set(gone)
    left = tuple(tuple(np.setdiff1d(part, gone) for part in both) for both in judge.rounds)
    expected = load_judge(objective)(reader_of(), left, DIGITS.labels).score(network())
    assert score == pytest.approx(expected, abs=1e-9)
    assert judge.score(network()) == score


def test_too_many_vanished_images_are_refused(files):
    judge = make_judge("rotation", reader_of(files, memory_limit_bytes=0), SPLIT, None)
    for index in SPLIT.train[:5]:
        files.pictures[index].unlink()
    with pytest.raises(HptError, match="5 of 400 images of files are unreadable"):
        judge.score(network())


@pytest.mark.parametrize("objective", ["infonce", "accuracy"])
def test_what_has_no_judge_is_refused(reader, objective):
    with pytest.raises(ValueError, match=f"'{objective}' has no judge"):
        make_judge(objective, reader, SPLIT, DIGITS.labels)


@pytest.mark.parametrize("objective", NEED_LABELS)
def test_an_objective_that_needs_labels_is_refused_without(reader, objective):
    expected = f"^objective: {objective} needs labels, and digits has none; use rotation, or give labels$"
    with pytest.raises(HptError, match=expected):
        make_judge(objective, reader, unlabelled_split(300), None)


@pytest.mark.parametrize(
    ("objective", "train", "validation", "part", "count"),
    [
        ("probe", 1, 50, "train", 1),
        ("knn", 50, 1, "validation", 1),
        ("knn", 50, 0, "validation", 0),
        ("rotation", 0, 0, "train", 0),
        ("rotation", 1, 0, "train", 0),
        ("rotation", 4, 0, "validation", 1),
        ("rotation", 50, 1, "validation", 1),
    ],
)
def test_parts_with_too_few_images_are_refused(reader, objective, train, validation, part, count):
    split = Split(SPLIT.train[:train], SPLIT.validation[:validation], SPLIT.test)
    expected = (
        f"^objective: {objective} needs 2 or more readable images in {part}, and digits has {count}; give more images$"
    )
    with pytest.raises(HptError, match=expected):
        make_judge(objective, reader, split, DIGITS.labels)


def test_images_that_cannot_be_read_do_not_count(reader):
    images = reader_of(known_unreadable={int(SPLIT.validation[0]): "gone"}).images
    split = replace(SPLIT, validation=SPLIT.validation[:2])
    make_judge("rotation", reader, split, None)
    with pytest.raises(HptError, match="in validation, and digits has 1;"):
        make_judge("rotation", replace(reader, images=images), split, None)


@pytest.mark.parametrize("objective", NEED_LABELS)
@pytest.mark.parametrize("labels", [DIGITS.labels, SEVERAL])
def test_validation_images_that_are_all_alike_are_refused(reader, objective, labels):
    alike = replace(SPLIT, validation=SPLIT.validation[DIGITS.labels[SPLIT.validation] == 3])
    count = len(alike.validation)
    with pytest.raises(HptError, match=f"objective: {objective} .* labels differ, and the {count} of digits all"):
        make_judge(objective, reader, alike, labels)
    make_judge("rotation", reader, alike, labels)


@pytest.mark.usefixtures("one_round")
def test_labels_that_no_validation_image_has_do_not_count(reader):
    labels = np.pad(SEVERAL, ((0, 0), (0, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = make_judge("knn", reader, SPLIT, labels).score(network())
    assert score == make_judge("knn", reader, SPLIT, SEVERAL).score(network())


@pytest.mark.parametrize("objective", NEED_LABELS)
def test_rare_labels_and_rounds_without_them_are_judged_without_a_warning(reader, objective):
    labels = np.zeros((len(DIGITS), 1), dtype=np.uint8)
    labels[SPLIT.seen[[3, 200]]] = 1
    labels[SPLIT.validation[0]] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 <= make_judge(objective, reader, SPLIT, labels).score(network()) <= 1


@pytest.mark.parametrize("objective", JUDGED)
def test_a_round_whose_images_have_all_vanished_is_left_out(files, objective):
    reader = reader_of(files, memory_limit_bytes=0)
    rounds = ((SPLIT.train, SPLIT.validation), (SPLIT.train, SPLIT.test[:1]))
    score = load_judge(objective)(reader, rounds[:1], files.labels).score(network())
    files.pictures[SPLIT.test[0]].unlink()
    assert load_judge(objective)(reader, rounds, files.labels).score(network()) == score


def test_images_of_one_group_are_judged_by_the_split():
    groups = np.zeros(len(DIGITS), dtype=np.int64)
    judge = make_judge("knn", reader_of(replace(DIGITS, groups=groups)), SPLIT, DIGITS.labels)
    assert [list(map(len, both)) for both in judge.rounds] == [[len(SPLIT.train), len(SPLIT.validation)]]
