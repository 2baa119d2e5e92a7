"""The whole config of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

from idp.config.compressor import Compressor
from idp.config.corpus import Corpus
from idp.config.evaluation import Budget, Evaluation, Latency
from idp.config.model import Model
from idp.config.options import SEEDS, option
from idp.config.recovery import Recovery
from idp.config.task import Task
from idp.config.tracker import Tracker


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
