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
        " main memory, each of its layers on the device while it runs; auto: resident where the device has room;"
        " cached: what it says of the text is in the store, once for all repairs and seeds, which read one text",
        choices=("auto", "resident", "streamed", "cached"),
        default="auto",
    )
    teacher_top: int = option(
        "teacher=cached: its most likely tokens that are kept at each place, beside some drawn from the others",
        minimum=1,
        maximum=WIDE,
        default=64,
        unsaid=True,
    )

    @property
    def cached(self) -> bool:
        """Whether it learns from what is kept of the dense model's predictions: another loss, within rounding."""
        return self.objective == "distill" and self.teacher == "cached"

    def text_seed(self, seed: int) -> int:
        """What its text is drawn by: what is kept of a teacher is of one draw, and serves every seed."""
        return 0 if self.cached else seed

    @property
    def unused(self) -> set[str]:
        """Its options that decide nothing as the others are set."""
        whole = {"micro_batch_size"} if self.micro_batch_size is None else set()
        whole |= set() if self.cached else {"teacher", "teacher_top"}  # wherever the dense model is, it says the same
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
