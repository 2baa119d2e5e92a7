"""The typed schema of everything in `conf/`: one dataclass per choice, each field with its help.

The types are checked by Hydra as it composes, the ranges and choices by `idp.checks`; both before any model is loaded.
Values live in the YAML files alone: a field without a default here must be set there.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional

from omegaconf import MISSING

from idp.beginning import AFTER, AUTO, MODES, PLACES, Beginning
from idp.errors import UserError

# Bounds beyond which a value is a slip of the hand: found before it costs the memory of a machine or a year of it.
SEEDS, MANY, WIDE = 2**32 - 1, 10**7, 2**16


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def option(
    help: str,
    *,
    choices: tuple = (),
    minimum: float | None = None,
    maximum: float | None = None,
    default: Any = MISSING,
) -> Any:
    """A config field with its help and the values that it takes.

    `default` is for an option that came later: a YAML of the user's own that does not know it means that.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    if isinstance(default, dict):  # empty rather than null, which words on the command line cannot be merged into
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def bos_option() -> Any:
    """The field `bos` of a recovery that puts a prompt before the input."""
    help = (
        "where the model's BOS token stands: before the prompt, after it (as a text's first token), or none at all;"
        " without effect where texts have none (model.bos)"
    )
    metadata = {"help": help, "choices": PLACES, "minimum": None, "maximum": None}
    return field(default=AFTER, kw_only=True, metadata=metadata)  # for YAMLs from before it was an option


def keyword_option(name: str, kind: str, help: str) -> Any:
    """Adds a config field whose name Python keeps for itself, such as `from`; read it with `getattr`."""
    metadata = {"help": help, "choices": (), "minimum": None, "maximum": None}

    def added(node: type) -> type:
        node.__annotations__ = {**inspect.get_annotations(node), name: kind}
        # Not part of __init__ and __repr__, which would spell it; OmegaConf then sets it as an attribute.
        setattr(node, name, field(default=MISSING, init=False, repr=False, compare=False, metadata=metadata))
        return node

    return added


@dataclass
class Model:
    name: str = option("the name in tables and run folders")
    source: str = option("where the weights come from", choices=("embedded", "hub", "local", "random"))
    path: Optional[str] = option("hub id, local folder, or GGUF file")
    revision: Optional[str] = option("hub revision: a branch, tag or commit")
    dtype: str = option(
        "auto: bfloat16 where the device multiplies in it, else float16 on a GPU and float32 on a CPU",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = option("auto, cpu, cuda or cuda:N")
    device_map: Optional[str] = option(
        "auto: spread a model larger than one device; null: one device",
        choices=(None, "auto", "balanced", "balanced_low_0", "sequential"),
    )
    trust_remote_code: bool = option("run code that comes with the model; off unless you trust its author")
    bos: str = option(
        "the token at the beginning of a text. auto: where the tokenizer puts one; always; never",
        choices=MODES,
        default=AUTO,
    )
    architecture: dict[str, Any] = option("source=random: the transformers config of a model with random weights")


CALIBRATED = ("gptq", "awq", "sparsegpt", "wanda")  # the methods of compression that look at calibration text


@dataclass
class Sparsity:
    method: Optional[str] = option(
        "how weights are pruned; null: not at all", choices=(None, "magnitude", "wanda", "sparsegpt")
    )
    level: float = option("share of weights set to zero", minimum=0.0, maximum=0.999)
    pattern: Optional[str] = option("N:M, such as 2:4; null: unstructured")


@dataclass
class Quantization:
    method: Optional[str] = option("how weights are rounded; null: not at all", choices=(None, "gptq", "rtn", "awq"))
    bits: Optional[int] = option("bits per weight; null: not quantised", choices=(2, 3, 4, 8, None))
    group_size: Any = option("weights that share a scale; -1: a whole row; auto: 128, 64 or 32, whichever divides")
    symmetric: bool = option("symmetric grid (no zero points)")
    actorder: Optional[str] = option(
        "GPTQ's activation ordering (act-order); static: columns with the largest inputs first; null: as they stand",
        choices=(None, "static"),
    )


@dataclass
class Calibration:
    corpus: Optional[str] = option("a corpus by name, or a text file; null: the run's own corpus")
    samples: int = option("sequences", minimum=1, maximum=MANY)
    length: int = option("tokens per sequence", minimum=8)
    seed: int = option("which sequences are drawn, whatever the run's seed", minimum=0, maximum=SEEDS)


@dataclass
class Compressor:
    sparsity: Sparsity = field(default_factory=Sparsity)
    quantization: Quantization = field(default_factory=Quantization)
    calibration: Calibration = field(default_factory=Calibration)
    path: Optional[str] = option("compressor=external: a folder, hub id or GGUF file that someone else compressed")
    revision: Optional[str] = option("compressor=external: hub revision: a branch, tag or commit")


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
    checkpoint_every: int = option("steps between checkpoints, from which a killed run continues", minimum=1)
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
    )
    teacher: str = option(
        "objective=distill: where the dense model is. resident: beside the compressed one on its device; streamed: in"
        " main memory, each of its layers on the device while it runs; auto: resident where the device has room",
        choices=("auto", "resident", "streamed"),
        default="auto",
    )


@dataclass
class Search:
    learning_rates: list[float] = option(
        "peak learning rates to try, by held-out loss; []: only its own", minimum=0.0, maximum=100.0
    )
    inits: list[str] = option("initial values to try, of those that init takes; []: only its own")
    steps: int = option("training steps of each candidate", minimum=1, maximum=MANY)


@dataclass
class Selector:
    """What the stages ask of a selector's options; each kind is a file in `idp/prompting/selectors`."""

    kind: str = option("how one prompt of the bank is chosen for an input; choose with recovery/selector=...")

    @property
    def fits(self) -> bool:
        """Whether it learns something from held-out text before it can choose."""
        return False

    @property
    def peeks(self) -> bool:
        """Whether it chooses with the answers in hand: it is measured by `peek`, and cannot be used."""
        return False

    @property
    def passes(self) -> int:
        """How often the model reads an input, for each prompt, before one is chosen."""
        return 0

    @property
    def constant(self) -> bool:
        """Whether it gives every input the same prompt by design: then one prompt for all is no collapse."""
        return False

    @property
    def published(self) -> bool:
        """Whether it is the choice that IDP's paper describes, by which claims about IDP are judged if it is there."""
        return False

    def peek(self, scores: Any) -> Any:
        """Of one that peeks, the choice for each document: the first of the prompts that score best on it.

        Args:
            scores: [documents, prompts], what each prompt alone scored on a document, the greater the better.

        Returns:
            [documents], each the number of a prompt.
        """
        return scores.argmax(1)

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""

    def check_model(self, model: Any, prompts: int | None = None) -> None:
        """Raises a UserError where the model or the bank does not have what the options name.

        Args:
            model: the model's config, of transformers.
            prompts: of the bank; None where that is not known yet.
        """

    def check_usable(self) -> None:
        """Raises a UserError where no model can choose like it: one that peeks is measured alone."""
        if self.peeks:
            raise UserError(
                f"recovery.selector={self.kind} chooses with the answers in hand: it can be evaluated, not used; take"
                " another selector of the same bank"
            )

    def build(self) -> Any:
        """The `idp.prompting.selectors.base.Selector` that they describe, not fitted yet where it needs that."""
        self.check_usable()
        raise NotImplementedError


@dataclass
class Fitting:
    blocks: int = option("held-out blocks on which prompts are compared and selectors are fitted", minimum=2)
    tokens: int = option("tokens of each of those blocks", minimum=8)
    reads: int = option("context tokens: those at the start of a block, which a selector is shown", minimum=1)

    def check(self) -> None:
        """Raises a UserError where more is read of a block than it has."""
        if self.reads > self.tokens:
            raise UserError(
                f"recovery.fit.reads={self.reads}: a block has recovery.fit.tokens={self.tokens} tokens; read that many"
                " or fewer"
            )


@dataclass
class Storage:
    bits: int = option("bits per number of a stored prompt", choices=(32, 16, 8, 4))
    prune: float = option("share of a prompt's numbers, the smallest, that are set to zero", minimum=0.0, maximum=0.99)
    symmetric: bool = option("bits=8 or 4: a grid around zero for each token; else from its smallest to its largest")
    half: str = option("bits=16: which kind", choices=("bfloat16", "float16"))


@dataclass
class Bank:
    """What IDP asks of the way in which its prompts come to differ; each kind is a file in `idp/recover/banks`."""

    kind: str = option("how the prompts of a bank come to differ; choose with recovery/bank=...")

    @property
    def trains(self) -> bool:
        """Whether its prompts are trained; else they exist already."""
        return True

    @property
    def shares(self) -> bool:
        """Whether its prompts share the training text out among them; else each reads all of it."""
        return False

    def judged(self, prompts: int) -> int:
        """How often an evaluation on held-out text reads that text."""
        return prompts

    def also_read(self, prompts: int, training: Training) -> int:
        """Sequences that its training reads, forward only, beside those of training each prompt and judging it."""
        return 0

    def check(self, recovery: Recovery) -> None:
        """Raises a UserError where the options, or the recovery's, do not go together."""

    def make(self, recovery: Recovery, work: Any) -> Any:
        """Makes the bank, a prompt for each of the recovery's lengths; `work` and result as of `Recovery.make`."""
        raise NotImplementedError


@dataclass
class Recovery:
    """What the stages ask of a recovery's options; each kind is a file in `idp/recover`, with how it is made."""

    kind: str = option("which one it is; choose with recovery=...")

    # The method of the literature that it is, for claims about that one: prompt (one soft prompt), idp (a bank of them
    # with a choice for each input), lora. A subclass is what its parent is unless it says otherwise; "": its kind.
    method: ClassVar[str] = ""

    @property
    def repairs(self) -> bool:
        """Whether there is anything to make; else the run measures the compressed model as it is."""
        return True

    @property
    def unused(self) -> set[str]:
        """Its own options that what it makes does not depend on, as the others are set: no part of its key."""
        return set()

    @property
    def trains(self) -> bool:
        """Whether it trains anything."""
        return False

    @property
    def reads_weights(self) -> bool:
        """Whether the compressed model's weights are needed to make it."""
        return True

    @property
    def adapts(self) -> bool:
        """Whether its repair has an adapter in the model's layers."""
        return self.beneath is not None and self.beneath.adapts

    @property
    def beneath(self) -> Recovery | None:
        """The recovery that is made first, and on whose adapter this one is made."""
        return None

    @property
    def prompts(self) -> bool:
        """Whether it puts prompts before the input, whatever their lengths."""
        return type(self).prompt_lengths is not Recovery.prompt_lengths

    def beginning(self, bos: tuple[int, ...]) -> Beginning:
        """What every input begins with, given the model's BOS; without a prompt that is the text's first token."""
        return Beginning(bos, getattr(self, "bos", AFTER))

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        """Tokens of each prompt that it puts before the input."""
        return []

    def check(self, place: str = "recovery") -> None:
        """Raises a UserError where the options do not go together; `place` is what they are called in messages."""

    def check_model(self, empty: Any) -> None:
        """Raises a UserError where the model, an `idp.models.LoadedModel` without weights, lacks what they name."""

    def make(self, work: Any) -> Any:
        """Makes the repair: an `idp.recover.work.Made` out of an `idp.recover.work.Work`."""
        raise NotImplementedError


@dataclass
class Trained(Recovery):
    training: Training = field(default_factory=Training)
    search: Search = field(default_factory=Search)

    part: ClassVar[str] = "prompt"  # what a search is of, in the record

    @property
    def trains(self) -> bool:
        return True

    @property
    def texts(self) -> int:
        """How many times the text of one training it reads."""
        return 1

    def candidate(self) -> Trained:
        """What a search trains in its place, to compare learning rates and initial values."""
        return self

    def check(self, place: str = "recovery") -> None:
        if self.training.warmup_steps >= self.training.steps:
            raise UserError(
                f"{place}.training.warmup_steps={self.training.warmup_steps}: must be less than {place}.training.steps="
                f"{self.training.steps}"
            )
        known = {item.name: item.metadata["choices"] for item in dataclasses.fields(self) if item.name == "init"}
        for init in self.search.inits:
            if init not in known.get("init", ()):
                wanted = f"choose among {', '.join(known['init'])}" if known else f"{self.kind} has none; use []"
                raise UserError(f"{place}.search.inits={init}: {wanted}")


@dataclass
class Task:
    names: list[str] = option("lm-eval task names; aliases: all, world_knowledge, commonsense, language_understanding")
    data_dir: Optional[str] = option("a folder with <task>/<split>.jsonl[.gz] in the hub's fields")
    fewshot: Optional[int] = option("examples before each question; null: the task's own", minimum=0, maximum=100)
    documents: Optional[int] = option("documents per task, evenly spaced; null: all", minimum=1)
    include_path: Any = option("a folder of lm-eval YAML files of your own, or a list of folders", default=None)
    documents_of: Optional[dict[str, Optional[int]]] = option(
        "at most so many documents of these tasks, or of each task of these groups; null: as task.documents says",
        default={},
    )
    fewshot_of: Optional[dict[str, int]] = option(
        "examples before each question of these tasks, or of the tasks of these groups, where task.fewshot is null",
        default={},
    )
    groups: Optional[dict[str, list[str]]] = option(
        "groups of tasks, or of lm-eval's groups, that are also scored as one: the mean over the group's tasks",
        default={},
    )
    open_book: Optional[dict[str, str]] = option(
        "tasks without a passage, each with the task that asks the same questions with it", default={}
    )


@dataclass
class Corpus:
    name: str = option("the name in records")
    source: str = option("where the text comes from", choices=("embedded", "hub", "local"))
    path: Optional[str] = option("source=hub: data set id; source=local: a txt, jsonl or parquet file, or .gz of one")
    subset: Optional[str] = option("source=hub: the data set's configuration")
    files: Optional[dict[str, str]] = option("source=hub: data files of each part, where the whole is too large")
    splits: Optional[dict[str, str]] = option("source=hub: the split for train, heldout and perplexity")
    text_field: str = option("the column or key that holds the text")
    made_from: list[str] = option(
        "tasks whose text the corpus holds: a run that evaluates one refuses the corpus; source=embedded reads these"
    )
    documents: Optional[int] = option("documents to read at most; null: all", minimum=1)
    revision: Optional[str] = option("source=hub: a branch, tag or commit of the data set", default=None)


@dataclass
class Budget:
    name: str = option("smoke, small or paper")
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


@dataclass
class Tracker:
    """What a run asks of a tracker's options; each kind is a file in `idp/track`."""

    title: ClassVar[str] = ""  # what it is called in warnings; "": by its kind

    kind: str = option("where runs are followed; choose with tracker=...")
    study: Optional[str] = option("the study that the run is part of: a label, and its runs' W&B group")
    tags: list[str] = option("labels of your own, beside study, model, compressor, recovery and budget")

    def start(self, run: Any) -> Any:
        """Begins to follow a run, an `idp.tracking.Followed`; whatever it raises becomes a warning.

        Returns:
            an `idp.tracking.Tracker`; None where nothing is to follow the run.
        """
        raise NotImplementedError


@dataclass
class Config:
    model: Model = field(default_factory=Model)
    compressor: Compressor = field(default_factory=Compressor)
    recovery: Recovery = field(default_factory=Recovery)
    task: Task = field(default_factory=Task)
    corpus: Corpus = field(default_factory=Corpus)
    budget: Budget = field(default_factory=Budget)
    evaluation: Evaluation = field(default_factory=Evaluation)
    latency: Latency = field(default_factory=Latency)
    tracker: Tracker = field(default_factory=Tracker)
    seed: int = option(
        "of training: initial values, order of text, dropout; calibration has its own", minimum=0, maximum=SEEDS
    )
    baselines: bool = option("also measure the dense and the compressed model")
    data_dir: Optional[str] = option("a folder of task data, with corpora under text/")
    output: str = option("folder of runs and of the store")
    store: str = option("folder of stored artifacts, shared by all runs")


def one_line(error: Exception) -> str:
    """An OmegaConf or Hydra error as one line that names the key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    text = " ".join(lines) or type(error).__name__
    return f"{key}: {text}" if key and key not in text else text


def n_of_m(pattern: str) -> tuple[int, int]:
    """N and M of a sparsity pattern `N:M`: in every M consecutive weights of a row at most N are not zero.

    Raises:
        UserError: it is not written so.
    """
    keep, _, of = str(pattern).partition(":")
    if not (keep.isdigit() and of.isdigit() and 0 < int(keep) < int(of)):
        raise UserError(f"compressor.sparsity.pattern={pattern}: use N:M with 0 < N < M, such as 2:4, or null")
    return int(keep), int(of)
