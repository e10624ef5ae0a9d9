"""Finishing in batches never makes the processor wait for a device: seen on the CPU, by what torch is asked to do."""

from collections import Counter

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpt_mlflow.augment.draws import draw_finish
from hpt_mlflow.augment.on_gpu import finish_in_batches
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths

# A value of a tensor is read, or where it is true.
READ = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal")
# A tensor is made of numbers of Python or NumPy, and would have to be sent.
MADE = "aten.lift_fresh"


class Operations(TorchDispatchMode):
    """Counts operations by name, and tensors that are indexed by a mask, whose length a device would have to tell."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation).rpartition(".")[0]
        self.counts[name] += 1
        if name in ("aten.index", "aten.index_put", "aten.index_put_"):
            self.counts["mask"] += sum(index is not None and index.dtype == torch.bool for index in args[1])
        return operation(*args, **(kwargs or {}))


def test_draws_are_sent_in_one_piece_and_nothing_is_read():
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8))
    draws = draw_finish(np.random.default_rng(0), 64, AUGMENTATIONS, Strengths())
    mean, std = torch.zeros(3), torch.ones(3)
    with Operations() as operations:
        finish_in_batches(crops, draws, 8, mean, std)
    assert operations.counts[MADE] == 1
    assert not [name for name in (*READ, "mask") if operations.counts[name]]
