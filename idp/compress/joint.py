"""Sparse and quantised at once: GPTQ that keeps the zeros which a pruner left.

Plain GPTQ behind a pruner moves the pruned weights as well: the error of each rounded column is pushed onto the columns
behind it, zeros included, and what was pushed far enough is rounded to a value that is not zero. Setting those back to
zero afterwards throws away error that nothing makes up for. Here a pruned weight is rounded to zero *inside* the loop,
so that its error is pushed on like any other (SparseGPT, 2301.00774, section 3.5).

Zero is on every grid: a zero point is an integer, and a group's range is taken from the pruned weights and always
holds zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from compressed_tensors.offload import disable_offloading
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_range
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq.helpers import (
    apply_activation_ordering,
    column_scale_window,
    factorize_hessian,
    prepare_batch,
    update_batch_qparams,
)
from llmcompressor.modifiers.pruning import SparseGPTModifier
from pydantic import PrivateAttr
from torch import nn


class MaskedGPTQModifier(GPTQModifier):
    """llmcompressor's GPTQ for layers whose zeros stay zero."""

    def hessians(self) -> Iterator[tuple[nn.Module, torch.Tensor, int]]:
        """Each layer that calibration has reached and that is not yet quantised: its Hessian and its count of rows."""
        for module, total in self._hessians.items():
            yield module, total / self._num_samples[module], int(self._num_samples[module])

    def compress_module_list(self, module_list: list[nn.Module]) -> None:
        for module in module_list:
            arguments = module.quantization_scheme.weights
            parameters = [module.weight_observer.get_qparams()]
            with torch.no_grad(), disable_offloading():
                kept = module.weight != 0
                weights, hessians, scales, zero_points, _ = prepare_batch(
                    [module], parameters, self._hessians, self._num_samples
                )
                quantized, failed = quantize_kept(
                    weights[0],
                    hessians[0],
                    kept,
                    scales[0],
                    zero_points[0],
                    arguments,
                    block_size=self.block_size,
                    dampening=self.dampening_frac,
                )
                if failed:
                    self._rtn_fallback_module_names.append(self._module_names[module])
                update_batch_qparams([module], quantized[None], scales, zero_points, None, arguments)
                self._num_compressed_modules += 1


class SharingSparseGPTModifier(SparseGPTModifier):
    """llmcompressor's SparseGPT on the Hessians that a GPTQ behind it gathers anyway: both want X^T X of one X."""

    _behind: MaskedGPTQModifier = PrivateAttr()

    def share(self, behind: MaskedGPTQModifier) -> SharingSparseGPTModifier:
        """Takes the Hessians of `behind`, which must be on the same layers and behind this in the recipe."""
        self._behind = behind
        return self

    def calibrate_module(self, module: nn.Module, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        """Nothing: `behind` is called with the same inputs."""

    def compress_modules(self) -> None:
        for module, hessian, count in self._behind.hessians():
            self._hessians[module], self._num_samples[module] = hessian, count
            super().compress_modules()  # one layer at a time: a Hessian is as large as a layer


def quantize_kept(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    kept: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    arguments: QuantizationArgs,
    *,
    block_size: int = 128,
    dampening: float = 0.01,
) -> tuple[torch.Tensor, bool]:
    """GPTQ (2210.17323, algorithm 1) in which the weights that are not kept are rounded to zero.

    Args:
        weight: [rows, columns], float32; used as working memory.
        hessian: X^T X over the calibration inputs, up to a factor, [columns, columns]; used as working memory.
        kept: [rows, columns]; False where the weight stays zero.
        scale, zero_point: of each row and group, [rows, groups] (one group for a whole row).
        arguments: the grid.
        block_size: columns after which the error is pushed onto the columns behind the block.
        dampening: added to the Hessian's diagonal, as a share of its mean.

    Returns:
        the quantised weight [rows, columns], and whether the Hessian could not be inverted, in which case every
        column was rounded on its own.
    """
    rows, columns = weight.shape
    low, high = calculate_range(arguments, weight.device)
    ordered, hessian, order = apply_activation_ordering(weight[None], hessian[None], arguments.actorder)
    groups = torch.arange(columns, device=weight.device) // (arguments.group_size or columns)
    if order is not None:
        groups, kept = groups[order[0]], kept[:, order[0]]
    failed = torch.zeros(1, dtype=torch.bool, device=weight.device)
    inverse = factorize_hessian(ordered, hessian, dampening, failed)[0]  # also sets the columns of dead inputs to zero
    context = ordered[0]
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        steps, zeros = column_scale_window(
            scale[None], zero_point[None], None, groups[None], arguments, num_rows=rows, i1=start, i2=end
        )
        block, corner = context[:, start:end].clone(), inverse[start:end, start:end]
        errors = torch.empty_like(block)
        for column in range(end - start):
            value, step = block[:, column], steps[0, :, column].float()
            zero = 0.0 if zeros is None else zeros[0, :, column]
            rounded = (torch.clamp(torch.round(value / step + zero), low, high) - zero) * step
            rounded = rounded * kept[:, start + column]
            error = (value - rounded) / corner[column, column]
            block[:, column + 1 :] -= error[:, None] * corner[column, column + 1 :]
            context[:, start + column], errors[:, column] = rounded, error
        context[:, end:] -= errors @ inverse[start:end, end:]
    if order is not None:
        context = context[:, order[0].argsort()]
    return context, bool(failed)
