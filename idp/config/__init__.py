"""The typed schema of everything in `conf/`: one dataclass per choice, each field with its help.

The types are checked by Hydra as it composes, the ranges and choices by `idp.checks`; both before any model is loaded.
Values live in the YAML files alone: a field without a default here must be set there.
"""

from idp.config.bank import Bank
from idp.config.compressor import Calibration, Claims, Compressor, Pruner, Quantizer, n_of_m
from idp.config.corpus import Corpus
from idp.config.evaluation import EAGER, GRAPH, Budget, Evaluation, Latency
from idp.config.model import Model
from idp.config.options import (
    CALIBRATION,
    DENSE,
    GRID,
    MANY,
    OUTCOMES,
    SEEDS,
    TEXT,
    WEIGHTS,
    WIDE,
    choices_of,
    conf_dir,
    decisive,
    keyword_option,
    one_line,
    option,
    part,
    values_of,
)
from idp.config.prompted import DENSE_STATES, OWN_STATES, Prompted, states_option
from idp.config.recovery import AWAITED, Recovery, Trained, bos_option, empty_prompt_option
from idp.config.run import Config
from idp.config.selector import Choice, Fitting, Selector, check_mixable, controls_option
from idp.config.storage import Storage
from idp.config.task import Suite, Task
from idp.config.tracker import Tracker
from idp.config.training import Search, Training

__all__ = [
    "AWAITED",
    "CALIBRATION",
    "DENSE",
    "DENSE_STATES",
    "EAGER",
    "GRAPH",
    "GRID",
    "MANY",
    "OUTCOMES",
    "OWN_STATES",
    "SEEDS",
    "TEXT",
    "WEIGHTS",
    "WIDE",
    "Bank",
    "Budget",
    "Calibration",
    "Choice",
    "Claims",
    "Compressor",
    "Config",
    "Corpus",
    "Evaluation",
    "Fitting",
    "Latency",
    "Model",
    "Prompted",
    "Pruner",
    "Quantizer",
    "Recovery",
    "Search",
    "Selector",
    "Storage",
    "Suite",
    "Task",
    "Tracker",
    "Trained",
    "Training",
    "bos_option",
    "check_mixable",
    "choices_of",
    "conf_dir",
    "controls_option",
    "decisive",
    "empty_prompt_option",
    "keyword_option",
    "n_of_m",
    "one_line",
    "option",
    "part",
    "states_option",
    "values_of",
]
