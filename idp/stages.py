"""The stages that make a model and its repair, each a product of the store, as a plan has them."""

from __future__ import annotations

import functools
from typing import cast

from idp import models, routing
from idp.compress import stage as compressing
from idp.plan.preflight import Plan
from idp.recover import opening
from idp.recover import selection as selecting
from idp.recover import stage as recovering
from idp.recover.training import Report
from idp.store import Product


def load(plan: Plan) -> Product:
    """Stage 1: the dense model."""
    return models.load(plan.config.model, plan.inputs.source, plan.store)


def compress(plan: Plan, dense: Product) -> Product:
    """Stage 2: the compressed model."""
    config, inputs = plan.config, plan.inputs
    return compressing.compress(
        config.compressor, plan.resolved, config.model, dense, inputs.calibration, plan.store, inputs.external
    )


def recover(plan: Plan, dense: Product, compressed: Product, report: Report | None = None) -> Product | None:
    """Stage 3: the repair; `report` is called with each step's figures, also where it was made before."""
    config = plan.config
    repair = recovering.recover(
        config.recovery,
        config.model,
        compressed,
        plan.inputs.corpus,
        config.seed,
        plan.store,
        report,
        dense=dense,
        calibration=plan.inputs.calibration_of(config),
    )
    if repair is not None and repair.reused and report is not None:  # its curves belong to this run as well
        for row in recovering.training_rows(repair):
            report(row)
    return repair


def select(
    plan: Plan, compressed: Product, repair: Product | None, finished: routing.Finished = lambda *_: None
) -> selecting.Selection | None:
    """The choice among a repair's prompts, None for one; `finished` is told of each task that is measured for it."""
    config = plan.config
    open_bank = cast(selecting.OpenBank, functools.partial(opening.open_bank, config.model, compressed, repair))
    outcomes = plan.outcomes(compressed, repair, finished)
    return selecting.select(config.recovery, config.model, repair, plan.inputs.corpus, open_bank, plan.store, outcomes)
