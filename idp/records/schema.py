"""The record's fields, as types; `docs/record.schema.json` is made of them.

A record is lm-eval's result (`results`, `versions`, `n-shot`, ...) and one more block, `idp`. Fields that came later
are `NotRequired`: older records lack them, and are read all the same. What reads a record takes these types, so that a
type checker finds a misspelt field, and not a user.
"""

from __future__ import annotations

from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # those of typing cannot be asked for their schema before 3.12
)

from typing_extensions import TypedDict

SCHEMA_VERSION = 1


class Doc:
    """What a field means, for readers of this file and of the published schema."""

    def __init__(self, text: str):
        self.text = text

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core), "description": self.text}


RowName = Literal["dense", "compressed", "repaired"]
Metrics = dict[str, Any]  # lm-eval's, by `<metric>,<filter>` and `<metric>_stderr,<filter>`; a name, an alias, counts


class Stage(TypedDict):
    """One stage of a run."""

    key: Annotated[str, Doc("the product's key in the store; of several products, the hash of their keys")]
    reused: Annotated[bool, Doc("whether all of it was there before the run")]
    seconds: Annotated[float, Doc("that making it took, whichever run made it, its prerequisites left out")]
    total_seconds: NotRequired[
        Annotated[float, Doc("with those of its prerequisites: what is beneath a repair, what the dense model said")]
    ]
    peak_memory_bytes: NotRequired[Annotated[int, Doc("of baselines alone; of the run's own stages: see `idp`")]]
    device_peak_bytes: NotRequired[Annotated[dict[str, int], Doc("likewise, by accelerator")]]


class Parameters(TypedDict):
    """Counts of numbers."""

    model: Annotated[int, Doc("the model's own")]
    added: Annotated[int, Doc("that the repair and its selector keep beside the model's")]
    trainable: Annotated[int, Doc("that were trained to make them")]


class Repair(TypedDict):
    """What a repair is made of."""

    method: Annotated[str, Doc("of the literature: prompt, idp, lora, ...; else the kind's own name")]
    prompts: Annotated[list[int], Doc("tokens of each prompt before the input")]
    adapter: Annotated[bool, Doc("whether it changes weights")]


class Bos(TypedDict):
    """The token at the beginning of a text."""

    tokens: list[int]
    text: str
    place: Annotated[str | None, Doc("before, after or within the prompt; None where there is no prompt")]


class Weights(TypedDict):
    """The compressed weights, as they lie in the store."""

    sparsity: Annotated[float, Doc("share of the compressed layers' weights that are zero")]
    bits_per_weight: Annotated[float, Doc("of the compressed layers, scales and zero points included")]
    packed_bytes: Annotated[int, Doc("of the whole model, quantised layers packed")]
    effective_bytes: Annotated[int, Doc("of the whole model with the zeros left out, computed")]
    reconstruction_error: NotRequired[Annotated[float, Doc("relative squared error of layers' outputs, mean")]]
    compressed_weights: NotRequired[int]
    group_size: NotRequired[int | None]
    patterns: NotRequired[Annotated[dict[str, float], Doc("share of groups that keep to N:M, by pattern")]]
    worst: NotRequired[dict[str, Any]]
    dead_inputs: NotRequired[int]
    not_inverted: NotRequired[list[str]]
    expert_tokens: NotRequired[dict[str, Any]]
    stored: NotRequired[Annotated[dict[str, int], Doc("layers by how they are kept: packed, dense")]]
    dense_bits: NotRequired[int]
    calibrated: NotRequired[Annotated[bool, Doc("whether calibration text decided them; absent in older records")]]


class PerplexityDetails(TypedDict):
    """Perplexity on one text."""

    perplexity: float | None
    nll: float | None
    stderr: NotRequired[Annotated[float | None, Doc("of `nll`, the mean loss in nats per token")]]
    tokens: int
    window: Annotated[int, Doc("tokens of each window; its first is only read")]


class LatencyFigures(TypedDict):
    """Times of one part of one shape, in milliseconds."""

    ratio: Annotated[float, Doc("to the reference, measured side by side")]
    p50: float
    p90: float
    p99: float
    mean: NotRequired[float]
    deviation: NotRequired[float]


class LatencyRow(TypedDict):
    """One variant at one batch size and input length."""

    variant: Annotated[str, Doc("dense, compressed, the repair's kind; `<kind>_merged`: its adapter in the weights")]
    batch_size: int
    input_tokens: int
    prefill: LatencyFigures
    decode: Annotated[LatencyFigures, Doc("per generated token")]
    peak_memory_bytes: NotRequired[int | None]


class Latency(TypedDict):
    """Latency of the run's models."""

    backend: dict[str, Any]
    reference: Annotated[str, Doc("the variant that ratios are to")]
    by_shape: NotRequired[
        Annotated[dict[str, str], Doc("variants timed on the weights of another with the same kernels")]
    ]
    units: NotRequired[str]
    rows: list[LatencyRow]


class Entropy(TypedDict):
    """How evenly prompts were chosen on one task."""

    nats: float
    share: Annotated[float, Doc("of that of an even choice")]


class SelectorBlock(TypedDict):
    """How one of several prompts was chosen; a kind may say more of itself."""

    kind: str
    added: int
    trainable: int
    peeks: NotRequired[Annotated[bool, Doc("it uses the labels: an upper bound, no method")]]
    constant: NotRequired[Annotated[bool, Doc("one prompt for all inputs by design")]]
    published: NotRequired[Annotated[bool, Doc("the choice that IDP's paper describes")]]
    entropy: dict[str, Entropy]
    collapsed: Annotated[list[str], Doc("tasks of whose documents one prompt got 95 % or more")]


class Training(TypedDict):
    """One trained part."""

    best_step: int
    heldout_loss: Annotated[float, Doc("nats per token, of the step that was kept")]
    heldout_loss_at_start: NotRequired[float]
    heldout: NotRequired[Annotated[list[list[float]], Doc("step and loss, each time; absent in older records")]]
    changes: NotRequired[Annotated[list[Any], Doc("what was done otherwise from a step on, once memory had run out")]]


class TaskData(TypedDict):
    """The documents of one task."""

    source: Annotated[str, Doc("data_dir, embedded or hub")]
    split: str
    documents: Annotated[int, Doc("that were evaluated")]
    documents_in_split: NotRequired[int]
    stand_in: Annotated[str | None, Doc("the task that was run instead: its scores are not comparable")]
    fingerprint: Annotated[str, Doc("hash of documents, examples and definition")]
    note: NotRequired[str]


class Test(TypedDict):
    """A paired difference on the same documents, above 0 where the later model is better."""

    difference: float
    low: Annotated[float, Doc("of the 95 % interval")]
    high: float
    p: float
    detectable: NotRequired[Annotated[float | None, Doc("the least difference seen with 80 % power")]]
    documents: NotRequired[Annotated[int, Doc("over all tasks")]]
    documents_to_decide: NotRequired[Annotated[float | None, Doc("a task, if this difference is real")]]


class Share(TypedDict):
    """Damage brought back: (repaired - compressed) / (dense - compressed), with its 95 % interval."""

    share: float
    low: float
    high: float


class TaskTest(Test):
    """The same of one task."""

    test: NotRequired[Annotated[str, Doc("mcnemar or t_test")]]
    gained: NotRequired[Annotated[float | None, Doc("documents that turned right")]]
    lost: NotRequired[Annotated[float | None, Doc("documents that turned wrong")]]
    damage_brought_back: NotRequired[Share | None]
    broken: NotRequired[Annotated[int | None, Doc("documents that dense has right and compressed wrong")]]
    brought_back: NotRequired[Annotated[int | None, Doc("of those, that the repaired model has right")]]


class Graded(TypedDict):
    """The same of the probability of the right choice."""

    mean: Test | None
    tasks: dict[str, TaskTest]


class TextTest(TypedDict):
    """A paired difference on the same windows of text, in nats per token, above 0 where the later model is better."""

    difference: float
    low: Annotated[float, Doc("of the 95 % interval")]
    high: float
    p: float
    windows: int
    damage_brought_back: NotRequired[Share | None]


class Comparison(TypedDict):
    """One model of the run against the one before it."""

    after: RowName
    before: RowName
    mean: Annotated[Test | None, Doc("of the unweighted mean over tasks")]
    tasks: dict[str, TaskTest]
    graded: Graded | None
    groups: NotRequired[dict[str, Test]]
    texts: NotRequired[Annotated[dict[str, TextTest], Doc("by text; absent in older records")]]
    unit: Annotated[Literal["share", "score"], Doc("of differences: a share of documents, or another score")]
    left_out: Annotated[list[str], Doc("tasks whose score is no mean over documents")]
    runs: NotRequired[list[int]]
    damage_brought_back: NotRequired[Share | None]


class Baseline(TypedDict):
    """What a model before the run's own scored."""

    results: dict[str, Metrics]
    perplexity: dict[str, float | None]
    stage: NotRequired[Stage]


class Environment(TypedDict, total=False):
    """Machine and versions; no part of a result."""

    idp: str
    python: str
    platform: str
    versions: dict[str, str]
    device: str
    devices: int
    instructions: Annotated[str, Doc("of the CPU, as torch uses them: AVX2, AVX512, ...; absent in older records")]
    cpus: int | None
    threads: int
    git_commit: str | None
    command: str


class IdpBlock(TypedDict):
    """All that is not lm-eval's."""

    schema_version: Literal[1]
    name: Annotated[str, Doc("of the run and its folder; ends in the hash of its config")]
    compressor: Annotated[str, Doc("what it does, in a word: none, gptq4, ...")]
    row: Annotated[RowName, Doc("the run's own model, which `results` are of")]
    budget: str
    config: Annotated[dict[str, Any], Doc("the resolved config")]
    stages: Annotated[dict[str, Stage | None], Doc("load, compress, recover, select, measure")]
    parameters: Parameters
    weights: Weights
    perplexity: Annotated[dict[str, float | None], Doc("by text; None: infinite")]
    latency: Latency | None
    selection: Annotated[dict[str, dict[str, int]], Doc("documents given each prompt, by task and prompt")]
    training: Annotated[dict[str, Training] | None, Doc("by trained part")]
    data: Annotated[dict[str, TaskData], Doc("by the task that was asked for")]
    baselines: dict[str, Baseline]
    environment: Environment
    batch_tokens: NotRequired[Annotated[int | None, Doc("tokens of a forward pass")]]
    peak_memory_bytes: NotRequired[Annotated[dict[str, int], Doc("of the process that made a stage, by stage")]]
    device_peak_bytes: NotRequired[Annotated[dict[str, dict[str, int]], Doc("by stage and accelerator")]]
    repair_bytes: NotRequired[int]
    repair: NotRequired[Repair | None]
    transfer: NotRequired[Annotated[dict[str, Any] | None, Doc("where the repair was learned, if not in this run")]]
    bos: NotRequired[Bos | None]
    perplexity_details: NotRequired[dict[str, PerplexityDetails]]
    fidelity: NotRequired[
        Annotated[dict[str, dict[str, dict[str, Any]]] | None, Doc("KL to dense, by row, `texts` or `tasks`, and name")]
    ]
    selector: NotRequired[SelectorBlock | None]
    controls: NotRequired[Annotated[dict[str, Any] | None, Doc("what other ways to choose a prompt score")]]
    truncated: NotRequired[Annotated[dict[str, int], Doc("contexts cut on the left, by task")]]
    merged_choices: NotRequired[Annotated[dict[str, int], Doc("choices encoded apart from their context, by task")]]
    search: NotRequired[dict[str, Any] | None]
    groups: NotRequired[dict[str, dict[str, Any]]]
    matching: NotRequired[dict[str, Any]]
    open_book: NotRequired[dict[str, Any]]
    comparisons: NotRequired[list[Comparison]]
    conclusion: NotRequired[Annotated[str, Doc("one sentence")]]


Record = TypedDict(
    "Record",
    {
        "results": dict[str, Metrics],
        "versions": dict[str, Any],
        "n-shot": dict[str, Any],
        "n-samples": dict[str, Any],
        "higher_is_better": NotRequired[dict[str, dict[str, bool]]],
        "configs": NotRequired[Annotated[dict[str, Any], Doc("lm-eval's task definitions")]],
        "task_hashes": NotRequired[dict[str, Any]],
        "config": Annotated[dict[str, Any], Doc("model, model_dtype, limit")],
        "idp": IdpBlock,
    },
)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a record, as `docs/record.schema.json` publishes it: `python -m idp.records.schema`."""
    from pydantic import TypeAdapter

    found = TypeAdapter(Record).json_schema()
    _without_titles(found)
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A record of idp"}
    return about | {key: value for key, value in found.items() if key != "title"}


def _without_titles(node: Any) -> None:
    """Drops the titles that pydantic makes of names."""
    if isinstance(node, dict):
        for value in node.values():
            _without_titles(value)
        if isinstance(node.get("title"), str):
            del node["title"]
    elif isinstance(node, list):
        for value in node:
            _without_titles(value)


if __name__ == "__main__":
    import json

    print(json.dumps(json_schema(), indent=1))
