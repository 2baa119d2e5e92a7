"""Small models of each family on the card and on the CPU, in float32: scores, choices, texts, gradients agree."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.families import FAMILIES
from tests.gpu.bench import Bench, request, requests, text
from tests.gpu.lines import FAILED, OK, Line
from tests.gpu.steps import Step

if TYPE_CHECKING:
    import torch

    from idp.models import LoadedModel
    from idp.prompting.repaired import RepairedModel

NATS = 1e-3  # a log-likelihood of some ten tokens in float32, summed in another order
GRADIENT = 1e-3  # of the gradient's own length
LENGTHS = (4, 11, 30)


def parts(bench: Bench) -> list[str]:
    return list(FAMILIES) if bench.cuda else ["llama", "gemma2"]  # a dry run: they say nothing that tests do not say


def run(family: str, bench: Bench) -> Iterator[Line]:
    folder = bench.folder / "models" / family
    if not folder.exists():
        from idp.models import _make_random

        _make_random(FAMILIES[family], folder)
    found, expected = (_looked_at(folder, bench, device) for device in (bench.device, "cpu"))
    furthest = max(
        abs(a - b)
        for way, scores in expected["scores"].items()
        for a, b in zip(found["scores"][way], scores, strict=True)
    )
    gradients = max(
        float((found["gradients"][way] - wanted).norm() / wanted.norm())
        for way, wanted in expected["gradients"].items()
    )
    trouble = []
    if furthest > NATS:
        ways = [
            way
            for way, scores in expected["scores"].items()
            if max(abs(a - b) for a, b in zip(found["scores"][way], scores, strict=True)) > NATS
        ]
        trouble.append(f"log-likelihoods are apart by more than {NATS:g} nats: {', '.join(ways)}")
    if gradients > GRADIENT:
        trouble.append(f"gradients are apart by more than {GRADIENT:g} of their length")
    for name in ("choices", "texts"):
        wrong = [way for way in expected[name] if found[name][way] != expected[name][way]]
        if wrong:
            trouble.append(f"other {name} than on the CPU: {', '.join(wrong)}")
    figure = f"{furthest:.1e} nats, gradients {gradients:.1e} apart; {_count(expected)}"
    yield Line(
        family,
        figure,
        FAILED if trouble else OK,
        "; ".join(trouble),
        {"nats_apart": furthest, "gradients_apart": gradients},
    )


def _count(expected: dict[str, Any]) -> str:
    scores, texts = (sum(map(len, expected[name].values())) for name in ("scores", "texts"))
    return f"{scores} scores, {texts} texts"


def _looked_at(folder: Any, bench: Bench, device: str) -> dict[str, Any]:
    """Scores, chosen prompts, texts and gradients on one device, each by how the model is repaired."""
    from idp import models
    from idp.evaluate.engine import LocalEngine
    from idp.evaluate.scorer import Scorer

    loaded = models.open_model(folder, replace(bench.config(folder), dtype="float32", device=device))
    questions = [item for tokens in (24, 90) for item in requests(tokens, 6)]
    for place, item in enumerate(questions):
        item.doc_id = place // 4
    found: dict[str, Any] = {"scores": {}, "choices": {}, "texts": {}, "gradients": {}}
    for way, repaired in _ways(loaded).items():
        scorer = Scorer(LocalEngine(repaired), 700)
        scores = scorer.loglikelihood(questions, disable_tqdm=True)
        found["scores"][way] = [value for value, _ in scores]
        found["choices"][way] = dict(sorted(scorer.choices.items()))
        found["texts"][way] = scorer.generate_until(_prompts(), disable_tqdm=True)
    for kind in ("prompt", "prefix"):
        found["gradients"][kind] = _gradient(loaded, kind)
    return found


def _prompts() -> list[Any]:
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 8}
    draw = random.Random(1)
    return [request("generate_until", (text(draw, 12 + 9 * number), options), number) for number in range(3)]


def _ways(loaded: LoadedModel) -> dict[str, RepairedModel]:
    """The model alone, behind one prompt, with IDP's choice of three, and behind trained keys and values."""
    from idp.prompting.bank import PromptBank
    from idp.prompting.repaired import RepairedModel
    from idp.prompting.selectors.attention import Attention
    from idp.prompting.states import flatten, run_prompt
    from idp.recover.initial import initial

    prompts = [initial(loaded, length, "vocabulary", "", seed) for seed, length in enumerate(LENGTHS)]
    prefix = flatten(run_prompt(loaded.model, prompts[1], [])).float().cpu()
    return {
        "alone": RepairedModel(loaded),
        "prompt": RepairedModel(loaded, PromptBank(prompts[:1], ["prompt_0"])),
        "idp": RepairedModel(loaded, PromptBank(prompts, [f"prompt_{n}" for n in range(3)]), Attention()),
        "prefix": RepairedModel(loaded, PromptBank([prefix], ["prefix"], "prefix")),
    }


def _gradient(loaded: LoadedModel, kind: str) -> torch.Tensor:
    """That of a training step, as the recovery of this name takes it, on the CPU."""
    import torch

    from idp.config import Training
    from idp.prompting.states import flatten, run_prompt
    from idp.recover.initial import initial
    from idp.recover.nets.reparameterization import Itself
    from idp.recover.tuning import loss_with

    start = initial(loaded, 7, "vocabulary", "", 0)
    if kind == "prefix":
        with torch.no_grad():
            start = flatten(run_prompt(loaded.model, start, [])).float()
    maker = Itself(start).to(loaded.device)
    batch = torch.randint(1, 250, (2, 40), generator=torch.Generator().manual_seed(3))
    loss_with(loaded, maker, kind, training(Training), None)(batch).backward()
    return maker.prompt.grad.detach().cpu().float()


def training(schema: type) -> Any:
    """Options of a training of which one step is taken."""
    from omegaconf import OmegaConf

    from idp.config import conf_dir

    steps = {"steps": 1, "warmup_steps": 0, "evaluate_every": 1, "checkpoint_every": 1, "heldout_sequences": 1}
    sizes = {"batch_size": 2, "sequence_length": 40, "learning_rate": 1e-3}
    loaded = OmegaConf.load(conf_dir() / "recovery" / "training" / "prompt.yaml")
    own = {key: value for key, value in OmegaConf.to_container(loaded, resolve=False).items() if key != "defaults"}
    return schema(**(own | steps | sizes))


IMPORTS = ("transformers.models.llama.modeling_llama", "idp.evaluate.scorer", "idp.recover.prompt")
STEP = Step("families", 50, parts, run, IMPORTS)
