"""What makes a prompt or a prefix while it is trained: itself, or an encoder that is folded away afterwards.

Each is a module whose forward gives the prompt as a bank holds it, [tokens, width]: one last call folds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from idp.prompting.states import flatten, run_prompt


class Itself(nn.Module):
    """A prompt that is trained directly.

    Args:
        start: its first value, [tokens, width].
    """

    def __init__(self, start: torch.Tensor):
        super().__init__()
        self.prompt = nn.Parameter(start.detach().clone().float())

    def forward(self) -> torch.Tensor:
        return self.prompt


class Held(nn.Module):
    """A prompt whose first rows stay what they are.

    Args:
        rows: those, [held, width].
        maker: gives the others.
    """

    def __init__(self, rows: torch.Tensor, maker: nn.Module):
        super().__init__()
        self.register_buffer("rows", rows.detach().clone().float())
        self.maker = maker

    def forward(self) -> torch.Tensor:
        made = self.maker()
        return torch.cat([self.rows.to(made.device), made])


class StatesOf(nn.Module):
    """The keys and values that another, frozen model computes of a soft prompt, as a prefix; gradients flow through it.

    Args:
        model: that model, which is no part of this module: it is neither trained, moved nor saved with it.
        maker: gives the prompt, [tokens, hidden_size].
        ahead: token ids before it, whose keys and values come first.
    """

    def __init__(self, model: PreTrainedModel, maker: nn.Module, ahead: Sequence[int]):
        super().__init__()
        self.maker = maker
        self._run = lambda prompt: flatten(run_prompt(model, prompt, ahead)).float()

    def forward(self) -> torch.Tensor:
        return self._run(self.maker())


class PromptEncoder(nn.Module):
    """P-tuning's encoder (Liu et al., 2103.10385), of the shapes that PEFT's PromptEncoder has.

        mlp:   d -> h -> h -> d, ReLU between
        lstm:  two bidirectional LSTM layers d -> 2h, then 2h -> 2h -> d, ReLU between

    Args:
        start: the first value of its input, [tokens, d].
        kind: `mlp` or `lstm`.
        hidden_size: h.
        residual: the prompt is input plus output, and the last layer starts at zero, so the prompt starts as `start`
            (Razdaibiedina et al., 2305.03937); else the prompt is the output, as published.
        seed: draws the first weights.
    """

    def __init__(self, start: torch.Tensor, kind: str, hidden_size: int, residual: bool, seed: int):
        super().__init__()
        width, h = start.shape[1], hidden_size
        self.residual = residual
        self.input = nn.Parameter(start.detach().clone().float())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(width, h, num_layers=2, bidirectional=True) if kind == "lstm" else None
            layers = [nn.Linear(2 * h, 2 * h)] if kind == "lstm" else [nn.Linear(width, h), nn.ReLU(), nn.Linear(h, h)]
            self.mlp = nn.Sequential(*layers, nn.ReLU(), nn.Linear(2 * h if kind == "lstm" else h, width))
        if residual:
            _to_zero(self.mlp[-1])

    def forward(self) -> torch.Tensor:
        output = self.mlp(self.input if self.lstm is None else self.lstm(self.input)[0])
        return self.input + output if self.residual else output


class PrefixEncoder(nn.Module):
    """Prefix tuning's encoder (Li & Liang, 2101.00190, section 4.3): an MLP from an embedding to keys and values.

        d -> h -> 2 * layers * kv_heads * head_dim, tanh between

    Args:
        embedded: the first value of its input, [tokens, d].
        start: the first prefix, [tokens, 2 * layers * kv_heads * head_dim].
        hidden_size: h.
        residual: the prefix is `start`, which stays as it is, plus the output, which starts at zero; else it is the
            output, as published.
        seed: draws the first weights.
    """

    def __init__(self, embedded: torch.Tensor, start: torch.Tensor, hidden_size: int, residual: bool, seed: int):
        super().__init__()
        self.input = nn.Parameter(embedded.detach().clone().float())
        self.register_buffer("start", start.detach().clone().float() if residual else None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(embedded.shape[1], hidden_size), nn.Tanh(), nn.Linear(hidden_size, start.shape[1])
            self.mlp = nn.Sequential(*layers)
        if residual:
            _to_zero(self.mlp[-1])

    def forward(self) -> torch.Tensor:
        output = self.mlp(self.input)
        return output if self.start is None else self.start + output


def _to_zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
