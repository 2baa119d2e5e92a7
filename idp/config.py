"""The typed schema of everything in `conf/`: one dataclass per choice, each field with its help.

The types are checked by Hydra as it composes, the ranges and choices by `idp.checks`; both before any model is loaded.
Values live in the YAML files alone: a field without a default here must be set there.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from omegaconf import MISSING

from idp.beginning import AFTER, AUTO, MODES, PLACES, Beginning
from idp.errors import UserError

log = logging.getLogger(__name__)

# Bounds beyond which a value is a slip of the hand: found before it costs the memory of a machine or a year of it.
SEEDS, MANY, WIDE = 2**32 - 1, 10**7, 2**16


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def option(
    help: str,
    *,
    choices: tuple | Callable[[], tuple] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    default: Any = MISSING,
    unsaid: bool = False,
    decides: bool = True,
) -> Any:
    """A config field with its help and the values that it takes.

    Args:
        help: in a line.
        choices: the values; a function where they are known only once kinds are found.
        minimum, maximum: of a number.
        default: for an option that came later: a YAML of the user's own that does not know it means that.
        unsaid: whether records and hashes are silent about it while it has its default, as they were before it came.
        decides: whether what is made depends on it; else it is no part of a key (`decisive`).
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    metadata |= {"unsaid": unsaid, "decides": decides}
    if isinstance(default, (dict, list)):  # of each its own; {} rather than null, which words can be merged into
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def part(node: type, *, keyword: bool = False) -> Any:
    """A config field that is a choice of its own, made once the rest exists: no part of what that is known by."""
    return field(default_factory=node, kw_only=keyword, metadata={"decides": False})


def decisive(node: Any) -> dict[str, Any]:
    """The options of a dataclass that what is made by it depends on, those of its parts likewise, as plain values.

    Left out are fields that do not decide (`option(..., decides=False)`), those that are `unsaid`, and those that a
    node's property `unused` names: options that decide nothing as the others are set. So the same work has one key.
    """
    found = {}
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        unsaid = item.metadata.get("unsaid") and value == _default(item)
        if item.metadata.get("decides", True) and not unsaid and item.name not in getattr(node, "unused", ()):
            own = getattr(value, "options", None)  # a recovery within a recovery says itself what decides
            found[item.name] = own() if callable(own) else decisive(value) if dataclasses.is_dataclass(value) else value
    return copy.deepcopy(found)


def choices_of(item: dataclasses.Field) -> tuple:
    """The values that a field takes; empty where they are not named."""
    choices = item.metadata.get("choices", ())
    return choices() if callable(choices) else choices


def values_of(node: Any) -> dict[str, Any]:
    """Options as a record holds them and a run is known by: `asdict`, without what is `unsaid`."""
    values = dataclasses.asdict(node)

    def strip(node: Any, values: dict[str, Any]) -> None:
        for item in dataclasses.fields(node):
            value = getattr(node, item.name)
            if dataclasses.is_dataclass(value):
                strip(value, values[item.name])
            elif item.metadata.get("unsaid") and value == _default(item):
                del values[item.name]

    strip(node, values)
    return values


def _default(item: dataclasses.Field) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def bos_option() -> Any:
    """The field `bos` of a recovery that puts a prompt before the input; what it comes to with a model decides."""
    help = (
        "where the model's BOS token stands: before the prompt, after it (as a text's first token), or none at all;"
        " without effect where texts have none (model.bos)"
    )
    metadata = {"help": help, "choices": PLACES, "minimum": None, "maximum": None, "decides": False}
    return field(default=AFTER, kw_only=True, metadata=metadata)  # for YAMLs from before it was an option


def controls_option() -> Any:
    """The field `controls` of a recovery that chooses among prompts."""
    return option(
        "also measure each prompt alone: what random, best, worst and oracle choice would score", decides=False
    )


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


class Pruner:
    """A method of pruning, as `compressor.sparsity.method` names it; each is a file in `idp/compress/pruners`."""

    reads_text: ClassVar[bool] = False  # whether it looks at the layers' inputs on calibration text
    operations: ClassVar[float] = 3.0  # as `Compressor.operations`

    def modifier(self, sparsity: Any, layers: dict[str, Any], behind: list[Any]) -> Any:
        """The llmcompressor modifier that prunes.

        Args:
            sparsity: how much, and in which pattern.
            layers: the `torch.nn.Linear` modules to prune, by name.
            behind: the modifiers that quantise afterwards.
        """
        raise NotImplementedError


class Quantizer:
    """A method of rounding, as `compressor.quantization.method` names it; a file in `idp/compress/quantizers`."""

    reads_text: ClassVar[bool] = False  # whether it looks at the layers' inputs on calibration text
    operations: ClassVar[float] = 3.0  # as `Compressor.operations`
    orders: ClassVar[bool] = False  # whether it goes through columns in an order of its own: `actorder`

    def check_model(self, model: Any) -> None:
        """Raises a UserError where it cannot quantise a model, a transformers one whose weights need not be there."""

    def modifiers(self, quantization: Any, scheme: dict[str, Any], model: Any, keep_zeros: bool) -> list[Any]:
        """The llmcompressor modifiers that quantise, in order.

        Args:
            quantization: the options.
            scheme: `config_groups` and `ignore`, as llmcompressor's modifiers take them.
            model: the model that they will run on.
            keep_zeros: whether a pruner was there before, whose zeros must stay.
        """
        raise NotImplementedError


@dataclass
class Calibration:
    corpus: Optional[str] = option("a corpus by name, or a text file; null: the run's own corpus")
    samples: int = option("sequences", minimum=1, maximum=MANY)
    length: int = option("tokens per sequence", minimum=8)
    seed: int = option("which sequences are drawn, whatever the run's seed", minimum=0, maximum=SEEDS)


# What a kind may need beside its options: the run's training text, calibration text as the inputs of layers, the dense
# model, and weights: of a compressor those that others made, of a recovery the compressed model's.
TEXT, CALIBRATION, DENSE, WEIGHTS = "text", "calibration", "dense", "weights"


@dataclass(frozen=True)
class Claims:
    """What a compressor says of the weights that it leaves: held against them, and what their size follows from.

    Attributes:
        sparsity: the least share of zeros in every layer.
        pattern: N:M, in every group of M consecutive weights of a row at most N that are not zero.
        bits: of each weight on a uniform grid; None where weights are plain numbers.
        group_size: weights that share a scale; -1: a whole row.
        symmetric: whether the grid has no zero points.
        actorder: the order of columns, as a packed checkpoint says it.
    """

    sparsity: float = 0.0
    pattern: Optional[str] = None
    bits: Optional[int] = None
    group_size: Optional[int] = None
    symmetric: bool = True
    actorder: Optional[str] = None


@dataclass
class Compressor:
    """What the stages ask of a compressor's options; each kind is a file in `idp/compress/compressors`."""

    kind: str = option("how the model is compressed; choose with compressor=...")
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def needs(self) -> frozenset[str]:
        """What it is made of, of `DENSE`, `CALIBRATION` and `WEIGHTS`; nothing: the dense model stays as it is.

        One that needs `DENSE` changes that model in place (`apply`), and is then measured on the calibration text.
        Where it needs `CALIBRATION` as well, that text decides what comes out.
        """
        return frozenset({DENSE})

    @property
    def label(self) -> str:
        """A short name made from what it does, for tables and run folders."""
        return self.kind

    @property
    def operations(self) -> float:
        """Of each of two passes over the calibration text, in those of a forward pass, where that text is read.

        As it is, a forward pass, and half of the second moments of the layers' inputs.
        """
        return 3.0

    @property
    def parts(self) -> dict[str, Any]:
        """What its options name that is of a kind as well, such as a pruner, by where; it decides the weights, too."""
        return {}

    def resolved(self) -> Compressor:
        """The options as the kind that they are of, where older ones did not say it."""
        return self

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""

    def find(self, store: Any = None) -> Any:
        """Where weights that others made are, an `idp.models.ModelSource` known by its content; None: none wanted.

        Raises:
            UserError: they are not there.
        """
        return None

    def check_model(self, empty: Any, *, model: Model | None = None, source: Any = None, store: Any = None) -> None:
        """Checks the options against the model.

        Args:
            empty: the model without weights, an `idp.models.LoadedModel`.
            model: its config.
            source: what `find` gave.
            store: which knows what has been fetched.

        Raises:
            UserError: what does not fit.
        """

    def resolve(self, model: Any) -> Any:
        """What the options come to with this model of transformers, whose weights need not be there.

        Returns:
            plain JSON values, which `identity`, `claims` and `apply` are given; None where all is said by the options.
        """
        return None

    def identity(self, resolved: Any) -> dict[str, Any]:
        """All that decides the compressed weights, but for the model and the calibration text: its part of the key."""
        options = values_of(self)
        del options["calibration"]
        return {
            "compressor": {"kind": self.kind, **options},
            **({"resolved": resolved} if resolved is not None else {}),
        }

    def claims(self, resolved: Any) -> Claims:
        """What is claimed of the weights that it leaves."""
        return Claims()

    def apply(self, context: Any) -> None:
        """Changes the dense model in place: the weights of `context.layers`.

        Args:
            context: an `idp.compress.context.CompressionContext`.
        """
        raise NotImplementedError

    @property
    def origin(self) -> str:
        """Of one that needs `WEIGHTS`: what the user calls the place that they are from."""
        return self.label

    def fetch(self, source: Any, store: Any) -> Path:
        """Of one that needs `WEIGHTS`: the place of what `find` gave, downloaded if need be."""
        raise NotImplementedError

    def taken(self, source: Any, model: Model, dense: str) -> Any:
        """Of one that needs `WEIGHTS`: what `take` gives, an `idp.store.Identity`, by the key of the dense model."""
        raise NotImplementedError

    def take(self, source: Any, model: Model, dense: Any, store: Any) -> Any:
        """Of one that needs `WEIGHTS`: the product of what `find` gave, for the model of the product `dense`."""
        raise NotImplementedError

    def settings(self) -> list[tuple[str, Any]]:
        """Names and values of its options for a model card."""
        options = values_of(self)
        return [(name, value) for name, value in options.items() if name not in ("kind", "calibration")]


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


@dataclass
class Selector:
    """What the stages ask of a selector's options; each kind is a file in `idp/prompting/selectors`."""

    kind: str = option("how one prompt of the bank is chosen for an input; choose with recovery/selector=...")

    @property
    def fits(self) -> bool:
        """Whether it learns something from held-out text before it can choose."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """What it reads before it can choose; each prompt's loss on held-out text takes the model."""
        return frozenset({TEXT, WEIGHTS}) if self.fits and not self.uses_labels else frozenset()

    @property
    def uses_labels(self) -> bool:
        """Whether it chooses with the answers in hand: it is measured by `best_by_labels`, and cannot be used."""
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

    def best_by_labels(self, scores: Any) -> Any:
        """Of one that uses the labels, the choice for each document: the first of the prompts that score best on it.

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

    def check_prompts(self, prompts: int) -> None:
        """Raises a UserError where a bank of so many prompts does not have those that the options name."""

    @property
    def takes_centres(self) -> bool:
        """Whether the centres that a bank may bring are all that it would be fitted for: the mean input embedding of
        the text that each prompt was trained on, which `restore` is then given as `centres`."""
        return False

    @property
    def settles(self) -> bool:
        """Whether it comes to another selector once it is fitted: `settled`."""
        return False

    def settled(self, fitted: dict[str, Any]) -> Selector:
        """The selector that chooses as this one does once it is fitted, where there is one that needs no fit: what is
        measured with either is the same. `fitted` is the description of the fit."""
        return self

    def check_usable(self) -> None:
        """Raises a UserError where no model can choose like it: one that uses the labels is measured alone."""
        if self.uses_labels:
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
    context_tokens: int = option("tokens at the start of a block that a selector is shown", minimum=1)
    reads: Optional[int] = option("the former name of context_tokens", default=None, unsaid=True, decides=False)

    def __post_init__(self) -> None:
        if self.reads is not None:
            log.warning("recovery.fit.reads is now recovery.fit.context_tokens; the next release forgets the old name")
            self.context_tokens, self.reads = self.reads, None

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a key, under the names that keys have always had."""
        return {"blocks": self.blocks, "tokens": self.tokens, "reads": self.context_tokens}

    def check(self) -> None:
        """Raises a UserError where more is shown of a block than it has."""
        if self.context_tokens > self.tokens:
            raise UserError(
                f"recovery.fit.context_tokens={self.context_tokens}: a block has recovery.fit.tokens={self.tokens}"
                " tokens; show that many or fewer"
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
    def needs(self) -> frozenset[str]:
        """What it takes to make it, as `Recovery.needs`."""
        return frozenset({TEXT, WEIGHTS})

    @property
    def trains(self) -> bool:
        """Whether its prompts are trained; else they exist already."""
        return TEXT in self.needs

    def centred(self, prompts: int, training: Training) -> bool:
        """Whether it keeps the centre of the text that each prompt was trained on."""
        return False

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

    def check(self, recovery: Any) -> None:
        """Raises a UserError where the options, or the recovery's, do not go together."""

    def find(self, recovery: Any) -> tuple[Recovery, Any]:
        """As `Recovery.find`, for the recovery whose bank it is."""
        return recovery, None

    def content(self) -> dict[str, Any] | None:
        """As `Recovery.content`."""
        return None

    def make(self, recovery: Any, context: Any) -> Any:
        """Makes the bank, a prompt for each of the recovery's lengths; `context` and result as of `Recovery.make`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choice:
    """How one of several prompts is chosen, and what is measured of that choice."""

    selector: Selector
    fit: Fitting  # the held-out text on which prompts are compared
    controls: bool  # whether each prompt is also measured alone

    @property
    def compares(self) -> bool:
        """Whether it compares prompts on held-out text: as controls, or to fit the selector."""
        return self.controls or self.selector.fits


AWAITED = "<a run to come>"


@dataclass
class Recovery:
    """What the stages ask of a recovery's options; each kind is a file in `idp/recover`, with how it is made."""

    kind: str = option("which one it is; choose with recovery=...")

    # The method of the literature that it is, for claims about that one: prompt (one soft prompt), idp (a bank of them
    # with a choice for each input), lora. A subclass is what its parent is unless it says otherwise; "": its kind.
    method: ClassVar[str] = ""
    # Of how it is made, as part of its key: a kind that comes to make other repairs from the same options counts it up.
    version: ClassVar[int] = 3

    def bank_ahead(self, lengths: list[int]) -> tuple[list[str], bool]:
        """Of the bank that it will make, the names of its prompts and whether it keeps the centres of their text.

        Args:
            lengths: tokens of each prompt.
        """
        return [f"prompt {number}" for number in range(len(lengths))], False

    # The option that names the run whose repair it uses, if it uses one: a plan may leave it `AWAITED`, where that run
    # is not there yet.
    awaits: ClassVar[str] = ""

    @property
    def awaited(self) -> bool:
        """Whether it uses the repair of a run that is not there yet: nothing is known of that."""
        return bool(self.awaits) and getattr(self, self.awaits) == AWAITED

    @property
    def repairs(self) -> bool:
        """Whether there is anything to make; else the run measures the compressed model as it is."""
        return True

    @property
    def needs(self) -> frozenset[str]:
        """What it reads to make its repair, of TEXT, CALIBRATION, DENSE and WEIGHTS; `Work` gives it that alone.

        What it reads is checked beforehand, kept apart from what is evaluated, and part of the repair's key.
        """
        return frozenset({WEIGHTS})

    @property
    def trains(self) -> bool:
        """Whether it trains anything."""
        return False

    @property
    def trained(self) -> Trained | None:
        """Itself, where it trains anything: with `training` and `search`."""
        return None

    @property
    def seeded(self) -> bool:
        """Whether its repair depends on the run's seed."""
        return TEXT in self.needs

    @property
    def adapts(self) -> bool:
        """Whether its repair changes the model's layers; else it is one of the input alone."""
        return self.beneath is not None and self.beneath.adapts

    @property
    def beneath(self) -> Recovery | None:
        """The recovery that is made first, and on whose adapter this one is made."""
        return None

    @property
    def prompts(self) -> bool:
        """Whether it puts prompts before the input, whatever their lengths."""
        return type(self).prompt_lengths is not Recovery.prompt_lengths

    @property
    def choice(self) -> Choice | None:
        """How one of its prompts is chosen for an input; None where there is nothing to choose."""
        return None

    def choosing(self, selector: Selector) -> Recovery:
        """The same with another selector, of one that has a `choice`."""
        raise NotImplementedError

    @property
    def parts(self) -> dict[str, Any]:
        """The kinds that are chosen within it, by their config group below `recovery`."""
        return {}

    @property
    def stored(self) -> Storage | None:
        """In how few bits its prompts are kept; None: as they were made."""
        return None

    @property
    def label(self) -> str:
        """What its repair is called in listings of a store."""
        return self.kind

    # Its identity.

    @property
    def unused(self) -> set[str]:
        """Its own options that what it makes does not depend on, as the others are set: no part of its key."""
        return set()

    def options(self) -> dict[str, Any]:
        """Its options that what it makes depends on, as plain values: its part of the repair's key."""
        return decisive(self)

    def content(self) -> dict[str, Any] | None:
        """Of a repair that exists already: what it is made of, by content, as all that its key knows of it, wherever
        the files lie. None: it is to be made, and its key is made of `options` and of what it needs."""
        return None

    # Before anything is computed.

    def find(self) -> tuple[Recovery, Any]:
        """Finds the files that its options name.

        Returns:
            the recovery with what follows from them in its own options, and an `idp.recover.given.Given` that checks
            them and says where they are from; None where nothing is taken from elsewhere.

        Raises:
            UserError: a file is not there, damaged, or not what it should be.
        """
        return self, None

    def beginning(self, bos: tuple[int, ...]) -> Beginning:
        """What every input begins with, given the model's BOS; without a prompt that is the text's first token."""
        return Beginning(bos, getattr(self, "bos", AFTER))

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        """Tokens of each prompt that it puts before the input."""
        return []

    def numbers(self, empty: Any) -> int:
        """How many numbers its repair adds to a model, an `idp.models.LoadedModel` without weights, that which is made
        beneath it not counted; 0 where that is not known beforehand."""
        return 0

    def check(self, place: str = "recovery") -> None:
        """Raises a UserError where the options do not go together; `place` is what they are called in messages."""

    def check_model(self, empty: Any) -> None:
        """Raises a UserError where the model, an `idp.models.LoadedModel` without weights, lacks what they name."""

    # How it is made, put back on a model and exported.

    def make(self, context: Any) -> Any:
        """Makes the repair: an `idp.recover.context.RepairResult` out of an `idp.recover.context.RepairContext`."""
        raise NotImplementedError

    @classmethod
    def attach(cls, loaded: Any, folder: Path) -> Any:
        """Puts on a model what `make` has saved in `Work.own` itself, in a form that only this kind knows.

        Prompts, low-rank updates and new values of parameters (`Made`) are put on without it. Modules and parameters
        are replaced, never written into: latency takes a repair off its model again.

        Args:
            loaded: the model, an `idp.models.LoadedModel`, which may be changed in place.
            folder: a folder with those files, of a repair or of an export.

        Returns:
            the model with the repair on it.
        """
        raise NotImplementedError(f"{cls.__name__} saves files of its own, and has no `attach` that reads them")

    @classmethod
    def export(cls, own: Path, folder: Path) -> str:
        """Writes into `folder` what `attach` reads, for those who load an exported checkpoint.

        Args:
            own: the folder of what `make` has saved in `Work.own`.
            folder: the folder of the export for it, which is there.

        Returns:
            a sentence for the model card that says what it is and how it is loaded.

        Raises:
            UserError: there is no format that could hold it; so it is unless a kind says how.
        """
        stated = cls.__dict__.get("kind")
        kind = stated if isinstance(stated, str) and stated != MISSING else cls.__module__.rpartition(".")[2]
        raise UserError(
            f"recovery={kind} cannot be exported: its repair is neither prompts, a low-rank update nor new values of"
            " parameters, and it does not say how it is exported; idp.load opens the run itself"
        )


@dataclass
class Trained(Recovery):
    training: Training = field(default_factory=Training)
    search: Search = field(default_factory=Search)

    part: ClassVar[str] = "prompt"  # what a search is of, in the record

    @property
    def needs(self) -> frozenset[str]:
        teacher = {DENSE} if self.training.objective == "distill" else set()
        return frozenset({TEXT, WEIGHTS} | teacher)

    @property
    def trains(self) -> bool:
        return True

    @property
    def trained(self) -> Trained | None:
        return self if self.trains else None

    @property
    def texts(self) -> int:
        """How many times the text of one training it reads."""
        return 1

    def judged(self, prompts: int) -> int:
        """How often an evaluation on held-out text reads that text."""
        return prompts

    def also_read(self, prompts: int, training: Training) -> int:
        """Sequences that its training reads, forward only, beside those of training each prompt and judging it."""
        return 0

    def options(self) -> dict[str, Any]:
        """What a search chooses is no part of it: what is searched is."""
        found = super().options()
        if self.search.learning_rates:
            del found["training"]["learning_rate"]
        if self.search.inits:
            del found["init"]
        if not self.search.wanted:
            del found["search"]
        return found

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


class Suite:
    """What is known of a set of tasks beside how they are defined; each is a file in `idp/tasks/known`.

    Attributes:
        aliases: names in `task.names` that stand for several tasks, in their order.
        stand_ins: of a task whose documents are nowhere to be had, one that asks alike; records say so.
        definitions: a folder with lm-eval's YAML definitions of tasks that lm-eval does not have. With the Python
            beside them they are part of the key of each score.
        source: what records call the place of documents that come with it.
        place: the same for messages.
    """

    aliases: ClassVar[Mapping[str, Sequence[str]]] = {}
    stand_ins: ClassVar[Mapping[str, str]] = {}
    definitions: ClassVar[Optional[Path]] = None
    source: ClassVar[str] = ""
    place: ClassVar[str] = ""

    def splits(self, dataset: str | None, name: str | None) -> dict[str, Callable[[], Any]]:
        """The documents that come with it, of a data set as tasks name it: by split a function that loads them as a
        `datasets.Dataset`. They are taken where the user's own folder has none, before the hub is asked.

        Args:
            dataset: a hub id, such as allenai/ai2_arc.
            name: the data set's configuration; None where there is one only.
        """
        return {}

    def note(self, dataset: str | None) -> str:
        """How those documents differ from the hub's, for the record; "" where they do not."""
        return ""

    def trouble(self) -> str:
        """Why it does not have the documents of a data set, for messages."""
        return "does not have it"


@dataclass
class Corpus:
    """What is asked of a corpus's options; each source is a file in `idp/corpora/sources`, called by `source`."""

    name: str = option("the name in records")
    source: str = option("where the text comes from: embedded, hub, local, or a source of your own")
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

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""

    def read(self, data_dir: str | None, store: Any) -> tuple[dict[str, list[str]], str]:
        """Reads the text.

        Args:
            data_dir: the user's folder of data; None where there is none.
            store: an `idp.store.Store`, where what comes over a network is kept, so that it comes once.

        Returns:
            documents under `train` (always there), `heldout` and `perplexity` (where the corpus has those splits; no
            document of theirs is trained on); and the place they come from, for messages.

        Raises:
            UserError: the text cannot be had, or a file cannot be read.
        """
        raise NotImplementedError


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
    if TYPE_CHECKING:
        compressor: Compressor = field(default_factory=Compressor)
    else:  # a YAML that names no schema is typed once all is composed: compressors had no kinds before
        compressor: Any = field(default_factory=dict, metadata={"node": Compressor})
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
    plugins: list[str] = option(
        "modules with kinds of your own, imported before anything is composed", default=[], unsaid=True
    )


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
