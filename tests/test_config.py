"""Every shipped YAML composes and is checked; every mistake is one line that says what, where and what to do."""

import copy

import pytest

from idp.config import conf_dir, values_of
from idp.errors import UserError
from idp.records.record import identity
from idp.usage import options

CHOICES = [
    f"{group}={choice}"
    for group in ("model", "compressor", "recovery", "task", "corpus", "budget", "latency", "tracker")
    for choice in options(group)
]


# What the user must give.
GIVEN = {
    "task=custom": "task.names=[boolq]",
    "compressor=external": "compressor.path=/models/theirs",
    "recovery=transfer": "recovery.from=outputs/runs/theirs",
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_composes(choice, compose):
    compose(choice, *([GIVEN[choice]] if choice in GIVEN else []))


@pytest.mark.parametrize("selector", options("recovery/selector"))
def test_every_selector_composes(selector, compose):
    kind = "attention" if selector in ("attention_calibrated", "mixture") else selector
    recovery = {"arrow": "lowrank_experts"}.get(selector, "idp")
    assert compose(f"recovery={recovery}", f"recovery/selector={selector}").recovery.selector.kind == kind


@pytest.mark.parametrize("bank", options("recovery/bank"))
def test_every_bank_composes(bank, compose):
    given = ["recovery.bank.from=[prompts/theirs]"] if bank == "assembled" else []
    given += ["recovery.lengths=[25,25]"] if bank == "mixture" else []
    assert compose("recovery=idp", f"recovery/bank={bank}", *given).recovery.bank.kind == bank


@pytest.mark.parametrize("training", options("recovery/training"))
def test_every_training_composes(training, compose):
    rate = compose("recovery=prefix", f"recovery/training={training}").recovery.training.learning_rate
    assert rate == {"prompt": 1e-2, "weights": 3e-3, "paper": 1e-3}[training]


@pytest.mark.parametrize("search", options("recovery/search"))
def test_every_search_composes(search, compose):
    assert compose("recovery=lora", f"recovery/search={search}").recovery.search.learning_rates == []


@pytest.mark.parametrize("compressor", options("compressor"))
def test_the_run_s_seed_is_not_that_of_calibration(compressor, compose):
    """So a sweep over seeds trains anew on one compressed model, and its repairs are compared document by document."""
    given = [GIVEN[f"compressor={compressor}"]] if f"compressor={compressor}" in GIVEN else []
    assert compose(f"compressor={compressor}", "seed=2", *given).compressor.calibration.seed == 0
    drawn = compose(f"compressor={compressor}", "seed=2", "compressor.calibration.seed=1", *given)
    assert (drawn.seed, drawn.compressor.calibration.seed) == (2, 1)


def test_no_yaml_is_left_out():
    shipped = {str(path.relative_to(conf_dir()).with_suffix("")) for path in conf_dir().rglob("*.yaml")}
    covered = {choice.replace("=", "/") for choice in CHOICES} | {"config"}
    covered |= {f"experiment/{name}" for name in options("experiment")}  # test_bench_cost.py, every cell of each
    covered |= {f"hydra/launcher/{name}" for name in ("slurm", "joblib", "submitit_local")} | {"hydra/sweeper/grid"}
    covered |= {f"optuna/{name}" for name in ("prompt", "bank")} | {"hydra/sweeper/optuna"}  # tests/test_sweepers.py
    covered |= {f"hydra/sweeper/sampler/{name}" for name in ("grid", "random", "tpe")}  # tests/sweep
    parts = [f"recovery/{part}" for part in ("selector", "bank", "training", "search", "fit", "storage")]
    for group in (*parts, "compressor/calibration"):
        covered |= {f"{group}/{name}" for name in options(group)}
    assert shipped == covered


def test_every_yaml_begins_with_a_comment():
    for path in conf_dir().rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_the_budget_reaches_every_stage(compose):
    config = compose("budget=smoke", "recovery=lora", "compressor=gptq4")
    assert config.task.documents == config.budget.documents == 8
    assert config.compressor.calibration.samples == config.budget.calibration_samples
    assert config.recovery.training.steps == config.budget.steps
    paper = compose("budget=paper", "recovery=prompt", "compressor=gptq3")
    calibration, training = paper.compressor.calibration, paper.recovery.training
    assert (calibration.samples, calibration.length, paper.task.documents) == (128, 2048, None)
    assert (training.steps, training.batch_size, training.sequence_length) == (30000, 2, 1024)
    assert (training.learning_rate, training.warmup_steps, training.clip) == (1e-3, 500, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compressor=gptq4", "compressor.quantization.bits=5"], "compressor.quantization.bits=5: choose one of 2, 3"),
        (["compressor.quantization.group_size=0"], "compressor.quantization.group_size=0: use auto, -1"),
        (["compressor.quantization.group_size=big"], "compressor.quantization.group_size=big: use auto, -1"),
        (["compressor.sparsity.level=1.0"], "compressor.sparsity.level=1.0: must be from 0 to 0.999"),
        (["compressor.sparsity.level=nan"], "compressor.sparsity.level=nan: must be"),
        (["compressor.sparsity.pattern=4:2"], "compressor.sparsity.pattern=4:2: use N:M with 0 < N < M"),
        (["compressor=wanda50", "compressor.sparsity.level=-0.1"], "compressor.sparsity.level=-0.1: must be from 0"),
        (["compressor=wanda50", "compressor.sparsity.level=0"], "level=0: wanda would prune nothing; give a level"),
        (["compressor=sparsegpt50", "compressor.sparsity.pattern=1:4"], "the pattern 1:4 sets 0.75 of the weights to"),
        (["compressor=gptq4", "compressor.sparsity.level=0.5"], "level=0.5: nothing would prune; add compressor.spars"),
        (["compressor=gptq4", "compressor.sparsity.pattern=2:4"], "pattern=2:4: nothing would prune; add compressor"),
        (["compressor=wanda50", "compressor.quantization.bits=4"], "bits=4: nothing would quantise; add compressor"),
        (["compressor=wanda50", "compressor.quantization.method=rtn"], "bits is null: rtn needs compressor.quantiz"),
        (["compressor=rtn4", "compressor.quantization.actorder=static"], "actorder=static: only gptq goes through"),
        (["compressor=gptq4", "compressor.quantization.actorder=group"], "actorder=group: choose one of null, static"),
        (["model.device_map=cpu"], "model.device_map=cpu: choose one of null, auto, balanced"),
        (["model.dtype=int8"], "model.dtype=int8: choose one of auto, float32"),
        (["recovery=prompt", "recovery.length=0"], "recovery.length=0: must be at least 1"),
        (["recovery=idp", "recovery.lengths=[]"], "recovery.lengths is empty"),
        (["recovery=idp", "recovery.lengths=[]", "recovery.empty_prompt=true"], "give one length per prompt, which"),
        (["recovery=idp", "recovery/selector=nearest", "recovery.selector.temperature=0"], "temperature=0.0: must be"),
        (["recovery=idp", "recovery/bank=mixture"], "mixture takes the mean of prompts, which must be of one length"),
        (["recovery=idp", "recovery.lengths=[25,0]"], "recovery.lengths=0: must be at least 1"),
        (["recovery=idp", "recovery/bank=assembled"], "recovery.bank.from is empty: name folders of prompts"),
        (["recovery=idp", "recovery.storage.bits=5"], "recovery.storage.bits=5: choose one of 32, 16, 8, 4"),
        (["recovery=prompt", "recovery.storage.prune=1"], "recovery.storage.prune=1.0: must be from 0 to 0.99"),
        (["recovery=transfer"], "recovery.from is not set: name the run whose repair is used"),
        (["recovery=lora", "recovery.targets=[]"], "recovery.targets is empty"),
        (["recovery=prompt", "recovery.training.warmup_steps=99"], "must be less than recovery.training.steps=60"),
        (["recovery=prompt", "recovery.training.learning_rate=-1"], "must be from 0 to 100"),
        (["recovery=lora_idp", "recovery.lora.targets=[]"], "recovery.lora.targets is empty"),
        (
            ["recovery=lora_idp", "recovery.lora.training.warmup_steps=99"],
            "recovery.lora.training.warmup_steps=99: ",
        ),
        (["recovery=ptune", "recovery.encoder=gru"], "recovery.encoder=gru: choose one of mlp, lstm"),
        (["recovery=prefix", "recovery.encoder=lstm"], "recovery.encoder=lstm: choose one of none, mlp"),
        (["recovery=prompt", "recovery.training.objective=mse"], "objective=mse: choose one of lm, distill"),
        (
            ["recovery=prompt", "recovery.training.temperature=0"],
            "recovery.training.temperature=0.0: must be from",
        ),
        (["recovery=prompt", "recovery.search.learning_rates=[-1]"], "learning_rates=-1.0: must be from 0 to 100"),
        (["recovery=prompt", "recovery.search.inits=[zeros]"], "inits=zeros: choose among vocabulary, first_rows"),
        (["recovery=idp", "recovery.search.inits=[zeros]"], "inits=zeros: choose among vocabulary"),
        (["recovery=lora", "recovery.search.inits=[text]"], "recovery.search.inits=text: choose among zero, lowrank"),
        (["recovery=hard_prompt", "recovery.text=' '"], "recovery.text is empty"),
        (["task=custom"], "task.names is empty"),
        (["seed=-1"], "seed=-1: must be from 0 to 4294967295"),
        (["+model.bits=4"], "model.bits: there is no such option"),
        (["+recovery.lr=0.1", "recovery=prompt"], "recovery.lr: there is no such option"),
        (["+lr=0.1"], "lr: there is no such option"),
        (["seed=4294967296"], "seed=4294967296: must be from 0 to 4294967295"),
        (["recovery=prompt", "recovery.training.clip=inf"], "recovery.training.clip=inf: must be at least 0"),
        (["recovery=prompt", "recovery.training.batch_size=1000000000"], "must be from 1 to 65536"),
        (["latency.batch_sizes=[[1]]"], "latency.batch_sizes=[[1]]: give a plain list"),
        (["latency.batch_sizes=[]"], "latency.batch_sizes is empty"),
        (["budget.documents=0"], "documents=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(overrides, message, compose):
    with pytest.raises(UserError) as caught:
        compose(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_s_former_name_is_taken_for_a_release_and_names_the_same_run(compose, caplog):
    new = compose("recovery=idp", "recovery.fit.context_tokens=8")
    assert not caplog.records
    old = compose("recovery=idp", "recovery.fit.reads=8")
    assert old == new and old.recovery.fit.context_tokens == 8
    assert "recovery.fit.reads is now recovery.fit.context_tokens" in caplog.text
    written = values_of(new)
    before = copy.deepcopy(written)
    before["recovery"]["fit"]["reads"] = before["recovery"]["fit"].pop("context_tokens")
    assert identity(written) == identity(before) and "reads" not in written["recovery"]["fit"]
