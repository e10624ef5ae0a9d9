import pytest
import torch

from hpt_mlflow.gpu_errors import is_gpu_lost, lacks_memory


@pytest.mark.parametrize(
    ("error", "lost", "lacks"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"), True, False),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True, False),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True, False),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False, False),
        (RuntimeError("CUDA error: out of memory"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), False, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False, True),
        (RuntimeError("size mismatch"), False, False),
        (ValueError("an illegal memory access"), False, False),
    ],
)
def test_errors_are_of_memory_or_of_the_gpu_or_of_neither(error, lost, lacks):
    assert (is_gpu_lost(error), lacks_memory(error)) == (lost, lacks)
