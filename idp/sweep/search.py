"""`hydra/sweeper=optuna`: a search by Optuna that outlives its process, side by side with any launcher.

The study is a file. A trial that is finished is not run again; one that was being run when the search was killed is run
again under its own number, from where its run stopped. What trial n draws follows from the seed, n and the results so
far, so a search that was interrupted draws what it would have drawn.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import MISSING, OmegaConf, open_dict

from idp.errors import UserError
from idp.extras import needs
from idp.sweep import space as spaces
from idp.sweep.study import BEGUN, REASON, opened, tell

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

log = logging.getLogger(__name__)
RESULTS = "optimization_results.yaml"


@dataclass
class Sampler:
    """`hydra.sweeper.sampler`."""

    kind: str = MISSING
    seed: int = MISSING
    n_startup_trials: int = MISSING


@dataclass
class SearchOptions:
    """`hydra.sweeper`, explained in conf/hydra/sweeper/optuna.yaml."""

    _target_: str = MISSING
    sampler: Sampler = MISSING
    direction: str = MISSING
    storage: Optional[str] = None
    study_name: Optional[str] = None
    n_trials: int = MISSING
    n_jobs: int = MISSING
    max_failure_rate: float = MISSING
    params: Optional[dict[str, Any]] = None


class OptunaSweeper(Sweeper):
    """Asks Optuna for trials, launches `n_jobs` at a time, and tells it their losses, as `SearchOptions` say."""

    def __init__(self, **options: Any) -> None:
        self.options = SearchOptions(**{**options, "sampler": Sampler(**options["sampler"])})
        checks = {
            "direction": self.options.direction in ("minimize", "maximize"),
            "sampler.kind": self.options.sampler.kind in ("tpe", "random", "grid"),
            "sampler.seed": self.options.sampler.seed >= 0,
            "n_trials": self.options.n_trials >= 1,
            "n_jobs": self.options.n_jobs >= 1,
            "max_failure_rate": 0 <= self.options.max_failure_rate <= 1,
        }
        for name in (name for name, holds in checks.items() if not holds):
            raise UserError(f"hydra.sweeper.{name}: out of range; see conf/hydra/sweeper/optuna.yaml")

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """As Hydra asks of sweepers."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Searches, and writes the best trial to `optimization_results.yaml` in the sweep's folder.

        Raises:
            UserError: the search is not valid, its study belongs to another one, or too many trials fail.
        """
        with needs("hydra/sweeper=optuna", "optuna>=4.4", "sweep"):
            import optuna
            import optuna.storages.journal
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.fixed = spaces.read(self.options.params or {}, arguments, self.loader)
        limit = spaces.grid(self.space)[0] if self.options.sampler.kind == "grid" else math.inf
        made, given = self._made(), self.options
        assert self.config is not None and self.launcher is not None  # Hydra has called `setup`
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with opened(given.storage, given.study_name, given.direction, made, folder) as study:
            limit = min(limit, study.user_attrs[BEGUN] + given.n_trials)
            while (left := limit - sum(each.state.is_finished() for each in study.get_trials(deepcopy=False))) > 0:
                self._batch(study, int(min(left, given.n_jobs)))
            self._finish(study, folder)

    def _made(self) -> dict[str, Any]:
        """What no study may mix: the search space, and the rest of the config at its ends.

        Composes the ends of the space, so that an option that is not there is said before anything runs.
        """
        from optuna.distributions import distribution_to_json

        from idp.records.record import identity

        composed = []
        for point in spaces.ends(self.space):
            config = self.loader.load_sweep_config(self.config, [*spaces.words(point), *self.fixed])
            with open_dict(config):
                del config["hydra"]
            composed.append(identity(OmegaConf.to_container(config, resolve=False)))  # type: ignore[arg-type]
        space = {name: distribution_to_json(each) for name, each in sorted(self.space.items())}
        return {"search space": space, "value of other options": composed}

    def _batch(self, study: Study, count: int) -> None:
        """Runs trials side by side: first those that a killed search left open."""
        from optuna.trial import TrialState

        open_ = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))[:count]
        trials = [self._ask(study, each) for each in [*open_, *[None] * (count - len(open_))]]
        jobs = [(*spaces.words({name: t.params[name] for name in self.space}), *self.fixed) for t in trials]
        unique = list(dict.fromkeys(jobs))  # launchers that know a cell by its words run it once
        assert self.launcher is not None
        returned = self.launcher.launch([list(job) for job in unique], initial_job_idx=trials[0].number)
        results = dict(zip(unique, returned, strict=True))
        failed = [why for trial, job in zip(trials, jobs, strict=True) if (why := tell(study, trial, results[job]))]
        if len(failed) / count > self.options.max_failure_rate:
            raise UserError(f"{failed[0]}; hydra.sweeper.max_failure_rate=1 lets the search go on without it")

    def _ask(self, study: Study, left_open: Any) -> Trial:
        from optuna.trial import Trial

        number = left_open.number if left_open else len(study.get_trials(deepcopy=False))
        study.sampler = self._sampler(number)
        trial = Trial(study, left_open._trial_id) if left_open else study.ask()
        for name, each in self.space.items():
            if hasattr(each, "choices"):
                trial.suggest_categorical(name, each.choices)
            else:  # an integer or a float
                suggest = trial.suggest_int if "Int" in type(each).__name__ else trial.suggest_float
                suggest(name, each.low, each.high, step=each.step, log=each.log)
        return trial

    def _sampler(self, number: int) -> BaseSampler:
        import numpy as np
        from optuna import samplers

        options = self.options.sampler
        seed = int(np.random.SeedSequence([options.seed, number]).generate_state(1)[0])
        if options.kind == "tpe":  # trials that are under way count as poor ones, so that others are drawn beside them
            together = self.options.n_jobs > 1
            with warnings.catch_warnings(action="ignore"):  # experimental before Optuna 5
                return samplers.TPESampler(seed=seed, n_startup_trials=options.n_startup_trials, constant_liar=together)
        random = samplers.RandomSampler(seed=seed)
        if options.kind == "random":
            return random
        point = next(itertools.islice(spaces.grid(self.space)[1], number, None))
        with warnings.catch_warnings(action="ignore"):  # experimental
            return samplers.PartialFixedSampler(point, random)

    def _finish(self, study: Study, folder: Path) -> None:
        trials = study.get_trials(deepcopy=False)
        reasons = [trial.user_attrs[REASON] for trial in trials if REASON in trial.user_attrs]
        study.set_user_attr(BEGUN, None)
        if all(trial.value is None for trial in trials):
            raise UserError(f"all {len(trials)} trials failed; the last one: {reasons[-1] if reasons else 'unknown'}")
        best = study.best_trial
        log.info(
            f"{len(trials)} trials, {len(reasons)} failed; best, number {best.number}: {best.value}, {best.params}"
        )
        results = {"name": "optuna", "best_params": best.params, "best_value": best.value}
        OmegaConf.save(OmegaConf.create(results), folder / RESULTS)
