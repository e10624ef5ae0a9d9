"""The kernels of a GPU: run by Triton's interpreter where there is no GPU, and compiled for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpt_mlflow.augment import on_gpu
from hpt_mlflow.augment.crop_kernels import resize_box
from hpt_mlflow.augment.draws import blur_radius, draw_finish
from hpt_mlflow.augment.in_batches import Applied, finish_plainly, table_of
from hpt_mlflow.augment.on_gpu import finish_by_table
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.augment.views import finish_image_by_image

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = torch.tensor([0.1, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.5])
STRENGTHS = Strengths(gray_p=0.5)
RADIUS = blur_radius(STRENGTHS)


def noise(count, side, dtype=np.uint8, channels=3):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, np.iinfo(dtype).max, (count, channels, side, side), dtype, endpoint=True))


def both(crops, subset, applied):
    """Views by the kernels, and by torch."""
    draws = draw_finish(np.random.default_rng(1), len(crops), subset, STRENGTHS)
    table = torch.from_numpy(table_of(draws, 3)).to(DEVICE)
    given = crops.to(DEVICE), table, applied, RADIUS, MEAN.to(DEVICE), STD.to(DEVICE)
    return on_gpu.finish(*given), finish_plainly(*given)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_views_are_those_of_torch(dtype):
    # Of more pixels than a program makes.
    got, expected = both(noise(8, 33, dtype), AUGMENTATIONS, Applied(True, True, True, True))
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "subset", [(), ("color",), ("gray",), ("blur",), ("flip",), ("color", "flip"), ("gray", "blur", "flip")]
)
def test_views_of_any_subset_are_those_of_torch(subset):
    got, expected = both(noise(8, 9), subset, Applied.of_subset(subset))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_a_blur_wider_than_the_image_is_that_of_torch(side):
    got, expected = both(noise(4, side), ("blur",), Applied.of_subset(("blur",)))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_views_are_those_of_the_processor_of_crops_that_have_x_before_y_in_memory():
    crops = noise(16, 12).transpose(2, 3)
    draws = draw_finish(np.random.default_rng(2), 16, AUGMENTATIONS, STRENGTHS)
    expected = finish_image_by_image(crops, draws, RADIUS, MEAN, STD)
    table = torch.from_numpy(table_of(draws, 3)).to(DEVICE)
    got = on_gpu.finish(crops.to(DEVICE), table, Applied.by(draws), RADIUS, MEAN.to(DEVICE), STD.to(DEVICE))
    torch.testing.assert_close(got.cpu(), expected, atol=2e-4, rtol=0)


def test_no_images_give_no_views_and_no_boxes_no_crops():
    got, _ = both(noise(0, 8), AUGMENTATIONS, Applied(True, True, True, True))
    assert got.shape == (0, 3, 8, 8)
    boxes = torch.empty((0, 6), dtype=torch.int64, device=DEVICE)
    assert on_gpu.cut(noise(1, 8).to(DEVICE).flatten(), boxes, 4, 3).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1), (np.uint8, 4)])
@pytest.mark.parametrize("side", [5, 33])
def test_crops_are_those_of_the_loops(dtype, channels, side):
    rng = np.random.default_rng(0)
    shapes = (12, 17), (4, 20), (1, 1)
    images = [rng.integers(0, np.iinfo(dtype).max, (*shape, channels), dtype, endpoint=True) for shape in shapes]
    # Enlarged, reduced, one pixel, the whole image; left, top, width and height.
    boxes = [(0, (3, 2, 11, 9)), (1, (0, 0, 20, 4)), (2, (0, 0, 1, 1)), (0, (16, 11, 1, 1)), (0, (0, 0, 17, 12))]
    begins = np.cumsum([0, *(image.size for image in images)])
    rows = [(begins[i], images[i].shape[1], *box) for i, box in boxes]
    pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images])).to(DEVICE)
    got = on_gpu.cut(pixels, torch.tensor(rows, device=DEVICE), side, channels).cpu().numpy().astype(int)
    expected = np.empty((len(boxes), channels, side, side), dtype)
    for number, (i, box) in enumerate(boxes):
        resize_box(images[i], *box, expected[number])
    difference = np.abs(got - expected.transpose(0, 1, 3, 2))
    # A sum that lies between two levels may be rounded to either.
    assert difference.max() <= 1
    assert (difference > 0).mean() < (0.01 if dtype == np.uint8 else 0.1)


def test_kernels_are_used_where_a_trial_agrees(monkeypatch):
    draws = draw_finish(np.random.default_rng(1), 4, AUGMENTATIONS, STRENGTHS)
    given = noise(4, 8), torch.from_numpy(table_of(draws, 3)), Applied.by(draws), RADIUS, MEAN, STD
    plain = finish_by_table(*given)
    monkeypatch.setattr(on_gpu, "finishes", lambda *_: True)
    monkeypatch.setattr(on_gpu, "finish", lambda *_: "by kernels")
    assert finish_by_table(*given) == "by kernels"
    monkeypatch.undo()
    assert torch.equal(plain, finish_plainly(*given))


@pytest.mark.parametrize(("check", "error"), [("finishes", "finish_error"), ("cuts", "cut_error")])
def test_a_trial_that_fails_is_told_and_leaves_kernels_out(check, error, monkeypatch, caplog):
    gpu = torch.device("cuda")
    works = getattr(on_gpu, check).__wrapped__
    assert not works(torch.device("cpu"), torch.uint8)

    def broken(*_):
        raise RuntimeError("PTX is too new\nfor the driver")

    monkeypatch.setattr(on_gpu, error, broken)
    assert not works(gpu, torch.uint8)
    monkeypatch.setattr(on_gpu, error, lambda *_: 0.5)
    assert not works(gpu, torch.uint8)
    assert [record.getMessage().partition("(")[2] for record in caplog.records] == [
        "PTX is too new; Triton needs a C compiler and the header files of Python)",
        "their results are 0.5 apart)",
    ]
    monkeypatch.setattr(on_gpu, error, lambda *_: 1e-6)
    assert works(gpu, torch.uint8)


@pytest.mark.parametrize(("check", "error"), [("finishes", "finish_error"), ("cuts", "cut_error")])
def test_a_trial_without_memory_is_not_remembered_and_none_without_triton_not_told(check, error, monkeypatch, caplog):
    gpu, raised = torch.device("cuda"), []

    def fail(*_):
        raise raised.pop()

    monkeypatch.setattr(on_gpu, error, fail)
    works = getattr(on_gpu, check)
    works.cache_clear()
    raised += [ModuleNotFoundError("No module named 'triton'"), torch.OutOfMemoryError("CUDA out of memory")]
    with pytest.raises(torch.OutOfMemoryError):
        works(gpu, torch.uint8)
    assert not works(gpu, torch.uint8)
    assert not works(gpu, torch.uint8)
    works.cache_clear()
    assert not caplog.records


def test_trials_agree(monkeypatch):
    monkeypatch.setattr(on_gpu, "TRIED_SIDE", 12)
    assert on_gpu.finish_error(DEVICE, torch.uint8, 8) < 1e-4
    assert on_gpu.cut_error(DEVICE, torch.uint8, 8) <= 0


# As they are started, for GPUs from Turing on.
COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hpt_mlflow.augment import gpu_kernels

FLOATS = "table sums planes rows mean std views".split()
for name in "cut add_gray color blur_rows finish".split():
    kernel = getattr(gpu_kernels, name)
    flags = [argument for argument in kernel.arg_names if argument in ("jitters", "blurs")]
    types = {argument: "i32" for argument in kernel.arg_names} | dict.fromkeys(flags, "constexpr")
    types |= {argument: "*fp32" for argument in FLOATS if argument in types}
    types |= {argument: kind for argument, kind in (("boxes", "*i64"), ("pixels", "*u8"), ("crops", "*u8")) if argument in types}
    for value in (True, False) if flags else (True,):
        for capability in sys.argv[1:]:
            source = ASTSource(kernel, types, dict.fromkeys(flags, value))
            compiled = triton.compile(source, target=GPUTarget("cuda", int(capability), 32))
            print(name, capability, len(compiled.asm["cubin"]) > 0)
"""  # noqa: E501


def test_kernels_compile_for_gpus(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = str(Path(on_gpu.__file__).parents[2])
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": root}
    command = [sys.executable, "-c", COMPILE, "75", "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [
        f"{name} {capability} True"
        for name in ("cut", "add_gray", "color", "color", "blur_rows", "finish", "finish")
        for capability in (75, 90)
    ]
