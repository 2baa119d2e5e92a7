"""How a repair is trained, and searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from idp.config.options import MANY, WIDE, option


@dataclass
class Training:
    steps: int = option("optimizer steps (for idp: for each prompt)", minimum=1, maximum=MANY)
    batch_size: int = option("sequences per step", minimum=1, maximum=WIDE)
    sequence_length: int = option("tokens per sequence", minimum=8)
    learning_rate: float = option("peak learning rate of AdamW", minimum=0.0, maximum=100.0)
    weight_decay: float = option("AdamW's decoupled weight decay", minimum=0.0, maximum=100.0)
    warmup_steps: int = option("steps of linear warm-up, before a linear decay to zero", minimum=0, maximum=MANY)
    clip: float = option("gradient-clipping norm; the gradient is scaled down to it", minimum=0.0)
    evaluate_every: int = option("steps between evaluations on held-out text; the best one is kept", minimum=1)
    heldout_sequences: int = option("held-out sequences for those evaluations", minimum=1)
    checkpoint_every: int = option(
        "steps between checkpoints, from which a killed run continues", minimum=1, decides=False
    )
    objective: str = option(
        "lm: the text's next tokens; distill: the dense model's next-token distribution on the same text",
        choices=("lm", "distill"),
    )
    temperature: float = option(
        "objective=distill: both distributions are softened by it", minimum=0.01, maximum=1000.0
    )
    lm_weight: float = option(
        "objective=distill: share of the lm loss in a mixture of both; 0: distill alone", minimum=0.0, maximum=1.0
    )
    micro_batch_size: Optional[int] = option(
        "sequences per forward and backward pass, whose gradients are summed: less memory, the same loss and gradient;"
        " null: the whole batch",
        minimum=1,
        default=None,
    )
    checkpointing: Optional[bool] = option(
        "keep only what goes into each decoder layer and compute the layer anew in the backward pass: less memory, a"
        " third more time, the same gradient; null: once memory has run out",
        default=None,
        decides=False,
    )
    teacher: str = option(
        "objective=distill: where the dense model is. resident: beside the compressed one on its device; streamed: in"
        " main memory, each of its layers on the device while it runs; auto: resident where the device has room",
        choices=("auto", "resident", "streamed"),
        default="auto",
        decides=False,
    )

    @property
    def unused(self) -> set[str]:
        """Its options that decide nothing as the others are set."""
        whole = {"micro_batch_size"} if self.micro_batch_size is None else set()
        return whole | ({"temperature", "lm_weight"} if self.objective == "lm" else set())


@dataclass
class Search:
    learning_rates: list[float] = option(
        "peak learning rates to try, by held-out loss; []: only its own", minimum=0.0, maximum=100.0
    )
    inits: list[str] = option("initial values to try, of those that init takes; []: only its own")
    steps: int = option("training steps of each candidate", minimum=1, maximum=MANY)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to search for."""
        return bool(self.learning_rates or self.inits)
