"""Two processes give what one gives."""

import functools
import random

import pytest

from idp.errors import UserError
from idp.evaluate.batching import Request
from idp.evaluate.divergence import Keep, Kept, Watched
from idp.evaluate.engine import LocalEngine
from idp.evaluate.pool import PooledEngine
from idp.evaluate.scorer import Scorer
from idp.models import devices
from idp.prompting.repaired import RepairedModel

from .test_scorer import instance, multiple_choice, text


def open_folder(folder, device):
    """A function of this module, so that another process can find it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from idp.models import LoadedModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return RepairedModel(LoadedModel(model, AutoTokenizer.from_pretrained(folder)))


def dies(folder, device):
    import os

    os._exit(1)


def test_two_processes_score_as_one(open_tiny, model_folders):
    loaded = open_tiny("llama")
    requests = multiple_choice(random.Random(3), 30)
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 5}
    questions = [instance("generate_until", (text(random.Random(n), 1, 9), options), n) for n in range(12)]
    engine = PooledEngine(
        functools.partial(open_folder, model_folders("llama")), ["cpu", "cpu"], loaded.model.config, loaded.tokenizer
    )
    try:
        together = Scorer(engine, 300)
        alone = Scorer(LocalEngine(RepairedModel(loaded)), 300)
        found = together.loglikelihood(requests, disable_tqdm=True)
        expected = alone.loglikelihood(requests, disable_tqdm=True)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert together.generate_until(questions, True) == alone.generate_until(questions, True)
        assert together.tokens_run == alone.tokens_run
        windows = [Request([3], list(range(start, start + 20))) for start in range(40, 100, 10)]
        kept = Watched([Keep(number) for number in range(6)])
        alone.score_windows(windows, True, kept)
        asks = [Kept.decoded(found) for found in kept.found]
        for scorer in (together, alone):
            compared = Watched([None, *asks[1:]])
            scorer.score_windows(windows, True, compared)
            assert compared.found[0] is None and all(each["same"] == [True] * 20 for each in compared.found[1:])
            assert max(max(each["kl"]) for each in compared.found[1:]) < 1e-9
    finally:
        engine.close()


def test_a_process_that_dies_is_said_in_one_line(open_tiny, spawned_forked):
    loaded = open_tiny("llama")
    with pytest.raises(UserError, match="an evaluation process died"):
        PooledEngine(functools.partial(dies, None), ["cpu"], loaded.model.config, loaded.tokenizer)


def test_devices(compose):
    model = compose("model.device=cpu").model
    assert devices(model, None) == ["cpu"] and devices(model, 3) == ["cpu"] * 3
    model.device, model.device_map = "auto", "auto"
    with pytest.raises(UserError, match="evaluation.processes=2: model.device_map=auto"):
        devices(model, 2)
