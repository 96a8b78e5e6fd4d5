"""What a frame does between its products: in PyTorch, or on CUDA as Triton kernels, one launch each."""

from csm_cli.models.csm.kernels.dispatch import Kernels, has_triton, kernels_for

__all__ = ["Kernels", "has_triton", "kernels_for"]
