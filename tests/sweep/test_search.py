"""`hydra/sweeper=optuna`: what is searched, in which order; kills and failures cost no finished trial."""

import json

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from idp.config import conf_dir
from idp.errors import UserError
from idp.registry import register

optuna = pytest.importorskip("optuna", minversion="4.4")

RATE, LENGTH = "recovery.training.learning_rate", "recovery.length"
SPACE = (f"{RATE}=tag(log,interval(1e-3,1e-1))", f"{LENGTH}=range(5,55,5)")


class Killed(BaseException):
    """As a signal, which no part of a search handles."""


def loss(point):
    return (float(point[RATE]) - 0.02) ** 2 + abs(int(point[LENGTH]) - 30) / 100


class Launcher:
    """Runs `task` on each job's options in this process; the jobs of each launch are in `launched`."""

    def __init__(self, task):
        self.task, self.launched = task, []

    def launch(self, jobs, initial_job_idx):
        self.launched.append(jobs)
        return [self._run(words) for words in jobs]

    def _run(self, words):
        done = JobReturn(overrides=words)
        try:
            done.return_value = self.task(dict(word.split("=", 1) for word in words))
            done.status = JobStatus.COMPLETED
        except Exception as error:
            done.return_value, done.status = error, JobStatus.FAILED
        return done

    @property
    def points(self):
        return [[word for word in words if word.startswith("recovery.")] for jobs in self.launched for words in jobs]


@pytest.fixture
def search(tmp_path):
    """`search(*words, task=...)`: a search as the command line makes one, but for the runs; its launcher."""
    from omegaconf import OmegaConf

    from hydra_plugins.idp_optuna import OptunaSweeper

    register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):

        def run(*words, space=SPACE, fixed=("recovery=prompt", "compressor=rtn4"), task=loss):
            given = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra/sweeper=optuna", *words]
            config = hydra.compose("config", given, return_hydra_config=True)
            options = OmegaConf.to_container(config.hydra.sweeper)
            assert options.pop("_target_") == "hydra_plugins.idp_optuna.OptunaSweeper"
            sweeper = OptunaSweeper(**options)
            sweeper.config, sweeper.loader = config, GlobalHydra.instance().config_loader()
            sweeper.launcher = launcher = Launcher(task)
            run.launcher = launcher
            sweeper.sweep([*fixed, *space])
            return launcher

        yield run


def study(file, name="search"):
    backend = optuna.storages.journal.JournalFileBackend(str(file))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


def killed_at(number):
    """A task during whose call number `number`, counted from 1, the search is killed."""
    calls = []

    def task(point):
        calls.append(point)
        if len(calls) == number:
            raise Killed
        return loss(point)

    return task


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("range(5,55,step=5)", list(range(5, 55, 5))),
        ("range(5,54,5)", list(range(5, 54, 5))),
        ("range(9,0,-4)", [1, 5, 9]),
        ("range(0,1,0.1)", [0.1 * count for count in range(10)]),
        ("int(interval(2,4))", [2, 3, 4]),
        ("choice(a,b,[1,2])", ["a", "b", "[1,2]"]),
        ("a,b", ["a", "b"]),
        ("shuffle(range(3))", [0, 1, 2]),
    ],
)
def test_values_are_those_that_hydra_would_sweep(word, values):
    from idp.sweep import space

    read, fixed = space.read({"x": "choice(7,8)", "y": 3}, [f"x={word}", "z=1"])
    count, points = space.grid(read)
    found = [point["x"] for point in points]
    assert count == len(values) and fixed == ["y=3", "z=1"]
    if word.startswith("shuffle"):
        found.sort()
    assert found == (pytest.approx(values) if isinstance(values[0], float) else values)
    (override,) = OverridesParser.create().parse_overrides([f"x={word}"])
    if "interval" not in word and not word.startswith("shuffle"):
        hydras = sorted(override.sweep_string_iterator())
        assert len(hydras) == count
        if isinstance(values[0], int):
            assert hydras == sorted(map(str, values))


def test_numbers_are_drawn_as_their_tags_say():
    from optuna.distributions import FloatDistribution, IntDistribution

    from idp.sweep import space

    words = ["a=tag(log,interval(1e-5,1e-2))", "b=interval(0.0,1)", "c=tag(log,int(interval(1,64)))"]
    read, _ = space.read({}, [*words, "d=tag(log,range(1,9))", "e=range(0,10,5)"])
    assert read == {
        "a": FloatDistribution(1e-5, 1e-2, log=True),
        "b": FloatDistribution(0, 1),
        "c": IntDistribution(1, 64, log=True),
        "d": IntDistribution(1, 8, log=True),
        "e": IntDistribution(0, 5, step=5),
    }


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["x=1"], "nothing is searched"),
        (["x=range(5,5)"], r"x=range\(5,5\): .*empty"),
        (["x=tag(log,interval(0.0,1.0))"], r"x=tag\(log,interval\(0.0,1.0\)\): cannot be searched"),
        (["x=interval(2,1)"], r"x=interval\(2,1\): cannot be searched"),
        (["x=tag(log,range(1,9,2))"], "cannot be searched"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(words, error):
    from idp.sweep import space

    with pytest.raises(UserError, match=error):
        space.read({}, words)


def test_the_best_trial_is_the_lowest_loss_or_the_highest(search, tmp_path):
    results = {}
    for direction in ("minimize", "maximize"):
        launcher = search(f"hydra.sweeper.direction={direction}", "hydra.sweeper.n_trials=8")
        results[direction] = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
        losses = [loss(dict(word.split("=", 1) for word in words)) for words in launcher.points]
        assert results[direction]["best_value"] == (min if direction == "minimize" else max)(losses)
        assert loss(results[direction]["best_params"]) == results[direction]["best_value"]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_killed_search_does_what_an_undisturbed_one_does_and_no_finished_trial_twice(search, tmp_path, sampler, jobs):
    words = [f"hydra/sweeper/sampler={sampler}", f"hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.n_trials=8"]
    words += ["hydra.sweeper.sampler.n_startup_trials=3"]
    space = (f"{RATE}=choice(0.01,0.02)", SPACE[1]) if sampler == "grid" else SPACE
    undisturbed = search(*words, f"hydra.sweeper.storage={tmp_path / 'a.log'}", space=space).points
    assert len(undisturbed) == 8
    words.append(f"hydra.sweeper.storage={tmp_path / 'b.log'}")
    with pytest.raises(Killed):
        search(*words, space=space, task=killed_at(5))
    first = search.launcher.launched[: 4 // jobs]  # the launches that ended
    rest = search(*words, space=space).points
    assert [[w for w in job if w.startswith("recovery.")] for jobs in first for job in jobs] + rest == undisturbed
    trials = study(tmp_path / "b.log").get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8


def test_a_seed_draws_the_same_trials_and_another_one_others(search, tmp_path):
    draws = [search(f"hydra.sweeper.sampler.seed={seed}", "hydra.sweeper.n_trials=4").points for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_named_study_goes_on_and_an_unnamed_one_begins_anew(search, tmp_path):
    file = tmp_path / "studies" / "all.log"
    named = (f"hydra.sweeper.storage={file}", "hydra.sweeper.study_name=rates", "hydra.sweeper.n_trials=3")
    found = [*search(*named).points, *search(*named).points]
    assert len(study(file, "rates").get_trials()) == 6 and len({tuple(point) for point in found}) == 6
    unnamed = (f"hydra.sweeper.storage={file}", "hydra.sweeper.n_trials=3")
    assert search(*unnamed).points == search(*unnamed).points
    assert len(study(file).get_trials()) == 3 and len(study(file, "rates").get_trials()) == 6


def test_a_database_keeps_a_study_too(search, tmp_path):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    words = (f"hydra.sweeper.storage={url}", "hydra.sweeper.study_name=rates", "hydra.sweeper.n_trials=2")
    search(*words)
    search(*words)
    assert len(optuna.load_study(study_name="rates", storage=url).get_trials()) == 4


def test_another_search_in_the_same_study_is_refused(search, tmp_path):
    words = (
        f"hydra.sweeper.storage={tmp_path / 'a.log'}",
        "hydra.sweeper.study_name=rates",
        "hydra.sweeper.n_trials=1",
    )
    search(*words)
    for changed, what in [
        ({"space": (SPACE[0], f"{LENGTH}=range(5,60,5)")}, "search space"),
        ({"space": (f"{RATE}=interval(1e-3,1e-1)", SPACE[1])}, "search space"),
        ({"space": SPACE[:1]}, "search space"),
        ({"fixed": ("recovery=prompt", "compressor=rtn3")}, "value of other options"),
    ]:
        with pytest.raises(UserError, match=f"^the study rates in .*a.log has trials with another {what}"):
            search(*words, **changed)
        assert search.launcher.launched == []
    with pytest.raises(UserError, match="another direction"):
        search(*words, "hydra.sweeper.direction=maximize")
    search(*words, fixed=("compressor=rtn4", "tracker=none", "recovery=prompt"))  # the same runs in other words
    assert len(study(tmp_path / "a.log", "rates").get_trials()) == 2


@pytest.mark.parametrize("result", [None, float("nan"), UserError("recovery.length=5: too short")])
def test_a_failed_trial_is_told_with_its_reason_and_the_search_goes_on(search, tmp_path, result):
    calls = []

    def task(point):
        calls.append(point)
        if len(calls) != 2:
            return loss(point)
        if isinstance(result, Exception):
            raise result
        return result

    search("hydra.sweeper.n_trials=4", "hydra.sweeper.max_failure_rate=1", task=task)
    trials = study(tmp_path / "sweep" / "study.log").get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    reason = {None: "no held-out loss", "nan": "loss is nan"}.get(
        result if result is None else str(result), str(result)
    )
    assert trials[1].user_attrs["failed"].startswith("trial 1 failed: ") and reason in trials[1].user_attrs["failed"]


def test_a_failure_too_many_ends_the_search_which_goes_on_when_it_is_given_again(search, tmp_path):
    def task(point):
        raise UserError("no such thing")

    with pytest.raises(UserError, match=r"trial 0 failed: no such thing; hydra.sweeper.max_failure_rate=1 lets"):
        search("hydra.sweeper.n_trials=3", task=task)
    assert len(search("hydra.sweeper.n_trials=3").points) == 2
    with pytest.raises(UserError, match=r"all 2 trials failed; the last one: trial 1 failed: no such thing"):
        search("hydra.sweeper.n_trials=2", "hydra.sweeper.max_failure_rate=1", task=task)


def test_a_point_drawn_twice_at_once_is_run_once(search, tmp_path):
    space = (f"{RATE}=choice(0.01)", f"{LENGTH}=choice(5,10)")
    words = ("hydra/sweeper/sampler=random", "hydra.sweeper.n_jobs=6", "hydra.sweeper.n_trials=6")
    launcher = search(*words, space=space)
    assert len(launcher.launched) == 1 and len(launcher.points) == 2
    trials = study(tmp_path / "sweep" / "study.log").get_trials()
    assert [trial.value for trial in trials] == [loss(trial.params) for trial in trials] and len(trials) == 6


def test_what_a_kill_left_of_a_line_is_cut_off(search, tmp_path):
    file = tmp_path / "a.log"
    with pytest.raises(Killed):
        search(f"hydra.sweeper.storage={file}", "hydra.sweeper.n_trials=4", task=killed_at(3))
    with open(file, "ab") as journal:
        journal.write(b'{"op_code":5,"worker')
    search(f"hydra.sweeper.storage={file}", "hydra.sweeper.n_trials=4")
    assert len(study(file).get_trials()) == 4
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_grid_ends_with_its_last_point(search, tmp_path):
    space = (f"{RATE}=choice(0.01,0.02)", f"{LENGTH}=range(5,20,5)")
    points = search("hydra/sweeper/sampler=grid", space=space).points
    assert points == [[f"{RATE}={rate}", f"{LENGTH}={length}"] for rate in ("0.01", "0.02") for length in (5, 10, 15)]


@pytest.mark.parametrize(
    ("words", "space", "error"),
    [
        (["hydra.sweeper.direction=down"], SPACE, "hydra.sweeper.direction"),
        (["hydra.sweeper.n_trials=0"], SPACE, "hydra.sweeper.n_trials"),
        (["hydra.sweeper.max_failure_rate=2"], SPACE, "hydra.sweeper.max_failure_rate"),
        (["hydra/sweeper/sampler=grid"], SPACE, f"{RATE}: a grid needs values"),
        (["hydra.sweeper.storage=/proc/none/study.log"], SPACE, "hydra.sweeper.storage=/proc/none/study.log: "),
        (["hydra.sweeper.storage=nosuch://study"], SPACE, "hydra.sweeper.storage=nosuch://study: "),
        ([], ("recovery.lenth=range(5,10)",), "recovery.lenth"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(search, words, space, error):
    with pytest.raises(Exception) as raised:
        search(*words, space=space)
    assert error in str(raised.value)
    assert not hasattr(search, "launcher") or search.launcher.launched == []


def test_a_file_that_is_no_study_is_left_as_it_is(search, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("learning rates to try\nand lengths")
    with pytest.raises(UserError, match=r"notes.txt: it is no study that can be used"):
        search(f"hydra.sweeper.storage={file}")
    assert file.read_text() == "learning rates to try\nand lengths"
