"""What is measured, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from idp.config.options import MANY, WIDE, option


@dataclass
class Budget:
    name: str = option("smoke, small, medium or paper")
    documents: Optional[int] = option("documents per task; null: full splits", minimum=1)
    subject_documents: Optional[int] = option(
        "documents of each of many small tasks, such as MMLU's subjects; null: full splits", minimum=1, default=None
    )
    subject_fewshot: int = option(
        "examples before each of their questions where that is not laid down", minimum=0, maximum=100, default=5
    )
    calibration_samples: int = option("calibration sequences", minimum=1)
    calibration_length: int = option("tokens per calibration sequence", minimum=8)
    steps: int = option("training steps", minimum=1, maximum=MANY)
    batch_size: int = option("sequences per training step", minimum=1, maximum=WIDE)
    sequence_length: int = option("tokens per training sequence", minimum=8)
    prompt_learning_rate: float = option("peak learning rate of prompts", minimum=0.0, maximum=100.0)
    lora_learning_rate: float = option("peak learning rate of LoRA", minimum=0.0, maximum=100.0)
    warmup_steps: int = option("steps of linear warm-up", minimum=0)
    objective: str = option(
        "what repairs are trained toward: lm or distill, as recovery.training.objective has it",
        choices=("lm", "distill"),
        default="lm",
        unsaid=True,
    )
    teacher: str = option(
        "of distill: auto, resident, streamed or cached, as recovery.training.teacher has it",
        choices=("auto", "resident", "streamed", "cached"),
        default="auto",
        unsaid=True,
    )
    evaluate_every: int = option("steps between held-out evaluations", minimum=1)
    heldout_sequences: int = option("held-out sequences", minimum=1)
    perplexity_tokens: Optional[int] = option("tokens per corpus for perplexity; null: the whole test part", minimum=32)
    perplexity_window: int = option("tokens per perplexity window", minimum=16)


@dataclass
class Evaluation:
    batch_tokens: Optional[int] = option(
        "tokens per forward pass; null: 4096, more where a small model leaves a GPU idle; halved when memory runs out",
        minimum=64,
    )
    processes: Optional[int] = option(
        "processes, each with its own copy; null: one per GPU, one on a CPU", minimum=1, maximum=1024
    )
    perplexity: list[str] = option("corpora whose perplexity is measured; corpus: the run's own")
    perplexity_tokens: Optional[int] = option("tokens per corpus; null: the whole test part", minimum=32)
    perplexity_window: int = option("tokens per window", minimum=16)
    fidelity: bool = option(
        "also measure how far each model's predictions are from the dense one's, on text and on the tasks' contexts",
        default=True,
    )


EAGER, GRAPH = "eager", "graph"  # how decoding steps are launched


@dataclass
class Latency:
    enabled: bool = option("measure latency at the end of the run")
    batch_sizes: list[int] = option("rows per call", minimum=1, maximum=WIDE)
    input_tokens: list[int] = option("tokens of each row, before which a prompt comes", minimum=1)
    new_tokens: int = option("decoding steps per round", minimum=1)
    warmup: int = option("rounds that are not counted", minimum=0)
    rounds: int = option("counted rounds; every round runs every model once", minimum=2)
    merged: bool = option("also measure LoRA merged into the weights")
    decode: str = option(
        "eager: each step launched by the host, whose gaps are in its time; graph: one CUDA graph, replayed",
        choices=(EAGER, GRAPH),
        default=EAGER,
    )
