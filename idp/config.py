"""The typed schema of everything in `conf/`: one dataclass per choice, each field with its help.

The types are checked by Hydra as it composes, the ranges and choices by `idp.checks`; both before any model is loaded.
Values live in the YAML files alone: a field without a default here must be set there.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from idp.errors import UserError

Node = TypeVar("Node")

# Bounds beyond which a value is a slip of the hand: found before it costs the memory of a machine or a year of it.
SEEDS, MANY, WIDE = 2**32 - 1, 10**7, 2**16


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def option(help: str, *, choices: tuple = (), minimum: float | None = None, maximum: float | None = None) -> Any:
    """A config field with its help and the values that it takes."""
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    return field(default=MISSING, metadata=metadata)


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
        "auto: bfloat16 where the device has it, else float32", choices=("auto", "float32", "bfloat16", "float16")
    )
    device: str = option("auto, cpu, cuda or cuda:N")
    device_map: Optional[str] = option(
        "auto: spread a model larger than one device; null: one device",
        choices=(None, "auto", "balanced", "balanced_low_0", "sequential"),
    )
    trust_remote_code: bool = option("run code that comes with the model; off unless you trust its author")
    architecture: dict[str, Any] = option("source=random: the transformers config of a model with random weights")


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
        "GPTQ's order of columns; static: those with the largest inputs first; null: as they stand",
        choices=(None, "static"),
    )


@dataclass
class Calibration:
    corpus: Optional[str] = option("a corpus by name, or a text file; null: the run's own corpus")
    samples: int = option("sequences", minimum=1, maximum=MANY)
    length: int = option("tokens per sequence", minimum=8)
    seed: int = option("which sequences are drawn", minimum=0, maximum=SEEDS)


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
    clip: float = option("largest norm of the gradient", minimum=0.0)
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


@dataclass
class Search:
    learning_rates: list[float] = option(
        "peak learning rates to try, by held-out loss; []: only its own", minimum=0.0, maximum=100.0
    )
    inits: list[str] = option("initial values to try, of those that init takes; []: only its own")
    steps: int = option("training steps of each candidate", minimum=1, maximum=MANY)


@dataclass
class Selector:
    kind: str = option(
        "how one prompt of the bank is chosen for an input",
        choices=("attention", "random", "fixed", "likelihood", "nearest", "learned", "oracle"),
    )


@dataclass
class AttentionSelector(Selector):
    layer: int = option("decoder layer whose attention is read", minimum=0)
    softmax: str = option("attention before (pre) or after (post) the softmax", choices=("pre", "post"))
    reduce: str = option("over a prompt's tokens: mean or sum", choices=("mean", "sum"))
    heads: Optional[list[int]] = option("attention heads to read; null: all")
    calibrated: bool = option("standardise each prompt's score by its mean and deviation over held-out text")


@dataclass
class RandomSelector(Selector):
    seed: int = option("the choice for an input depends on this and on the input alone", minimum=0, maximum=SEEDS)


@dataclass
class FixedSelector(Selector):
    prompt: Any = option("best or worst by held-out loss, or a prompt's number, from 0")


@dataclass
class LikelihoodSelector(Selector):
    pass


@dataclass
class NearestSelector(Selector):
    pass


@dataclass
class LearnedSelector(Selector):
    objective: str = option(
        "expected: the least expected loss; best: cross-entropy to each block's best prompt",
        choices=("expected", "best"),
    )
    penalty: float = option("weight of half the squared norm of the router's weights", minimum=0.0, maximum=1e6)


@dataclass
class OracleSelector(Selector):
    pass


@dataclass
class Fitting:
    blocks: int = option("held-out blocks on which prompts are compared and selectors are fitted", minimum=2)
    tokens: int = option("tokens of each of those blocks", minimum=8)
    reads: int = option("tokens at the start of a block that a selector is shown", minimum=1)


@dataclass
class Storage:
    bits: int = option("bits per number of a stored prompt", choices=(32, 16, 8, 4))
    prune: float = option("share of a prompt's numbers, the smallest, that are set to zero", minimum=0.0, maximum=0.99)
    symmetric: bool = option("bits=8 or 4: a grid around zero for each token; else from its smallest to its largest")
    half: str = option("bits=16: which kind", choices=("bfloat16", "float16"))


@dataclass
class Bank:
    kind: str = option("how the prompts of a bank come to differ")


@dataclass
class IndependentBank(Bank):
    pass


@dataclass
class ClusterBank(Bank):
    blocks: Optional[int] = option("training blocks that are embedded and clustered at most; null: all", minimum=1)
    restarts: int = option("starts of k-means, of which the best is kept", minimum=1)
    smallest: float = option(
        "a cluster with fewer blocks than this share of an equal one is filled up with the nearest of the others",
        minimum=0.0,
        maximum=1.0,
    )


@dataclass
class SpecialistsBank(Bank):
    mixture: str = option(
        "hard: a block updates the prompt that it is assigned to; soft: all prompts, by their responsibilities",
        choices=("hard", "soft"),
    )
    balanced: bool = option("every prompt gets an equal share of each batch; without it one prompt tends to take all")
    temperature: float = option(
        "mixture=soft: of the responsibilities, in nats per token", minimum=1e-4, maximum=1000.0
    )
    diversity: float = option(
        "weight of the mean cosine similarity of two prompts in the loss", minimum=0.0, maximum=1000.0
    )


@dataclass
@keyword_option(
    "from", "list[str]", "PEFT prompt folders, bank folders, run folders or records whose prompts are joined"
)
class AssembledBank(Bank):
    pass


@dataclass
class Recovery:
    kind: str = option("none, hard_prompt, prompt, ptune, prefix, idp, lora, lora_idp or transfer")


@dataclass
class NoRecovery(Recovery):
    pass


@dataclass
class HardPrompt(Recovery):
    text: str = option("the instruction placed before every input")


@dataclass
class Trained(Recovery):
    training: Training = field(default_factory=Training)
    search: Search = field(default_factory=Search)


@dataclass
class PromptTuning(Trained):
    length: int = option("prompt tokens", minimum=1)
    init: str = option(
        "vocabulary: random rows of the embedding; first_rows: rows 0..n-1 (Xu et al.); text: the tokens of init_text;"
        " random: Gaussian with the embedding's own mean and deviation",
        choices=("vocabulary", "first_rows", "text", "random"),
    )
    init_text: str = option("the text for init=text, repeated to the prompt's length")
    storage: Storage = field(default_factory=Storage, kw_only=True)


@dataclass
class PTuning(PromptTuning):
    encoder: str = option("what makes the prompt while it is trained", choices=("mlp", "lstm"))
    encoder_hidden_size: int = option("width of the encoder's hidden layers", minimum=1, maximum=WIDE)
    residual: bool = option("add the encoder's input to its output, which then starts at zero")


@dataclass
class PrefixTuning(PromptTuning):
    encoder: str = option("what makes the prefix while it is trained: itself, or an MLP", choices=("none", "mlp"))
    encoder_hidden_size: int = option("encoder=mlp: width of its hidden layer", minimum=1, maximum=WIDE)
    residual: bool = option("encoder=mlp: add its output, which then starts at zero, to the initial prefix")


@dataclass
class Idp(Trained):
    lengths: list[int] = option("tokens of each prompt of the bank", minimum=1)
    init: str = option("as for recovery=prompt; each prompt has its own seed", choices=("vocabulary", "text", "random"))
    init_text: str = option("the text for init=text, repeated to the prompt's length")
    selector: Selector = field(default_factory=Selector)
    controls: bool = option("also measure each prompt alone: what random, best, worst and oracle choice would score")
    fit: Fitting = field(default_factory=Fitting)
    bank: Bank = field(default_factory=Bank, kw_only=True)
    storage: Storage = field(default_factory=Storage, kw_only=True)


@dataclass
class Lora(Trained):
    rank: int = option("rank of the update", minimum=1, maximum=WIDE)
    alpha: float = option("the update is scaled by alpha / rank", minimum=0.0, maximum=WIDE)
    dropout: float = option("dropout before the update, in training", minimum=0.0, maximum=0.99)
    targets: list[str] = option("names of the linear layers that are adapted")


@dataclass
class LoraIdp(Idp):
    lora: Lora = field(default_factory=Lora)


@dataclass
@keyword_option("from", "str", "the run whose repair is used: its record.json, its folder, or the repair's own folder")
class Transfer(Recovery):
    selector: Optional[Selector] = field(
        default=None, metadata={"help": "how one of several prompts is chosen; null: as in the run that it is from"}
    )
    controls: bool = option("also measure each prompt alone: what random, best, worst and oracle choice would score")
    fit: Fitting = field(default_factory=Fitting)


@dataclass
class Task:
    names: list[str] = option("lm-eval task names; aliases: all, world_knowledge, commonsense, language_understanding")
    data_dir: Optional[str] = option("a folder with <task>/<split>.jsonl[.gz] in the hub's fields")
    fewshot: Optional[int] = option("examples before each question; null: the task's own", minimum=0, maximum=100)
    documents: Optional[int] = option("documents per task, evenly spaced; null: all", minimum=1)


@dataclass
class Corpus:
    name: str = option("the name in records")
    source: str = option("where the text comes from", choices=("embedded", "hub", "local"))
    path: Optional[str] = option("source=hub: data set id; source=local: a txt, jsonl or parquet file, or .gz of one")
    subset: Optional[str] = option("source=hub: the data set's configuration")
    files: Optional[dict[str, str]] = option("source=hub: data files of each part, where the whole is too large")
    splits: Optional[dict[str, str]] = option("source=hub: the split for train, heldout and perplexity")
    text_field: str = option("the column or key that holds the text")
    made_from: list[str] = option("tasks whose text the corpus holds: a run that evaluates one refuses the corpus")
    documents: Optional[int] = option("documents to read at most; null: all", minimum=1)


@dataclass
class Budget:
    name: str = option("smoke, small or paper")
    documents: Optional[int] = option("documents per task; null: full splits", minimum=1)
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
    batch_tokens: int = option("tokens per forward pass; halved when memory runs out", minimum=64)
    processes: Optional[int] = option(
        "processes, each with its own copy; null: one per GPU, one on a CPU", minimum=1, maximum=1024
    )
    perplexity: list[str] = option("corpora whose perplexity is measured; corpus: the run's own")
    perplexity_tokens: Optional[int] = option("tokens per corpus; null: the whole test part", minimum=32)
    perplexity_window: int = option("tokens per window", minimum=16)


@dataclass
class Latency:
    enabled: bool = option("measure latency at the end of the run")
    batch_sizes: list[int] = option("rows per call", minimum=1, maximum=WIDE)
    input_tokens: list[int] = option("tokens of each row, before which a prompt comes", minimum=1)
    new_tokens: int = option("decoding steps per round", minimum=1)
    warmup: int = option("rounds that are not counted", minimum=0)
    rounds: int = option("counted rounds; every round runs every model once", minimum=2)
    merged: bool = option("also measure LoRA merged into the weights")


@dataclass
class Tracker:
    mode: str = option("auto: online when logged in, else offline", choices=("auto", "offline", "online", "disabled"))
    project: str = option("W&B project")
    entity: Optional[str] = option("W&B user or team")
    study: Optional[str] = option("the study that the run is part of: a tag, and its runs' W&B group")
    group: Optional[str] = option("W&B group; null: the study, or model and compressor where there is none")
    tags: list[str] = option("W&B tags, beside those of study, model, compressor, recovery and budget")
    artifacts: str = option(
        "the record and the repair as W&B artifacts; reference: names and hashes of files that stay where they are;"
        " upload: the files themselves",
        choices=("none", "reference", "upload"),
    )
    system_metrics: bool = option("also log the load of CPU, GPU, memory, disk and network")


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
    seed: int = option("everything random draws from (seed, stage)", minimum=0, maximum=SEEDS)
    baselines: bool = option("also measure the dense and the compressed model")
    data_dir: Optional[str] = option("a folder of task data, with corpora under text/")
    output: str = option("folder of runs and of the store")
    store: str = option("folder of stored artifacts, shared by all runs")


RECOVERIES = {
    "none": NoRecovery,
    "hard_prompt": HardPrompt,
    "prompt": PromptTuning,
    "ptune": PTuning,
    "prefix": PrefixTuning,
    "idp": Idp,
    "lora": Lora,
    "lora_idp": LoraIdp,
    "transfer": Transfer,
}
SELECTORS = {
    "attention": AttentionSelector,
    "random": RandomSelector,
    "fixed": FixedSelector,
    "likelihood": LikelihoodSelector,
    "nearest": NearestSelector,
    "learned": LearnedSelector,
    "oracle": OracleSelector,
}
BANKS = {
    "independent": IndependentBank,
    "cluster": ClusterBank,
    "specialists": SpecialistsBank,
    "assembled": AssembledBank,
}


def register() -> None:
    """Makes the schema known to Hydra: `schema` for the whole, and its parts that are chosen by a YAML of their own."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="schema", name="training", node=Training)
    store.store(group="schema", name="search", node=Search)
    store.store(group="schema", name="fit", node=Fitting)
    store.store(group="schema", name="storage", node=Storage)
    store.store(group="schema", name="slurm_launcher", node=_slurm_launcher())
    for kind, node in RECOVERIES.items():
        store.store(group="schema/recovery", name=kind, node=node)
    for kind, node in SELECTORS.items():
        store.store(group="schema/selector", name=kind, node=node)
    for kind, node in BANKS.items():
        store.store(group="schema/bank", name=kind, node=node)


def _slurm_launcher() -> type:
    """The options of `hydra/launcher=slurm`: submitit's, and `wait`."""
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    return dataclasses.make_dataclass("SlurmLauncher", [("wait", bool, False)], bases=(SlurmQueueConf,))


def restore(node: type[Node], values: dict[str, Any], name: str = "") -> Node:
    """A part of the config as a record holds it: plain JSON values, as the dataclasses that they were.

    Args:
        node: the part's dataclass; for a selector the general one: its kind says which.
        values: the record's values.
        name: what the part is called in messages.

    Raises:
        UserError: the values have an option that this version does not have, or lack one that it has.
    """
    if node is Selector:
        if values.get("kind") not in SELECTORS:
            raise UserError(f"{name}.kind={values.get('kind')}: this version has {', '.join(SELECTORS)}")
        node = SELECTORS[values["kind"]]
    known = {item.name: item for item in dataclasses.fields(node)}
    hints = typing.get_type_hints(node)
    if unknown := [key for key in values if key not in known]:
        raise UserError(f"{name}.{unknown[0]}: this version has no such option; the run was made by another one")
    lacking = [key for key, item in known.items() if item.default is MISSING and key not in values]
    if lacking:
        raise UserError(f"{name}.{lacking[0]} is not in the record: the run was made by another version")
    nested = {key for key in values if dataclasses.is_dataclass(hints[key])}
    made = {key: restore(hints[key], values[key], f"{name}.{key}") for key in nested}
    return node(**{**values, **made})


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
