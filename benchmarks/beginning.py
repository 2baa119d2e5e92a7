"""Where a model's BOS belongs, measured: dense losses with and without it, and prompts trained with it at each place.

    idp bench beginning FOLDER --data-dir DATA --corpus c4 --bits 4 --steps 60 --seeds 0 1

Prints one JSON line for each loss, in nats per token of held-out text: `untrained`, behind random tokens, the model as
it is; `trained`, behind a prompt trained with the model's weights rounded to `--bits` (none: as they are).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.beginning import PLACES, Beginning

if TYPE_CHECKING:
    import torch

GROUP = 32  # weights that share a scale


def main() -> None:
    """Measures and prints."""
    import torch

    from idp import models
    from idp.config import Corpus, Model
    from idp.corpora.corpus import blocks, named_corpus

    options = _options()
    model = Model("bench", "local", options.folder, None, options.dtype, "auto", None, False, "auto", {})
    loaded = models.open_model(Path(options.folder), model)
    corpus = Corpus("none", "embedded", None, None, None, None, "text", [], None)
    text = named_corpus(options.corpus, corpus, options.data_dir)
    heldout = blocks(text, "heldout", loaded.tokenizer, options.length, options.heldout, 0)
    empty = torch.empty(0, loaded.model.get_input_embeddings().weight.shape[1])
    _say("untrained", "no prompt, no BOS", None, _loss(loaded, empty, heldout, Beginning()))
    _say("untrained", "no prompt, BOS", None, _loss(loaded, empty, heldout, Beginning(loaded.bos)))
    for seed in options.seeds:
        start = _start(loaded, options.tokens, seed)
        for place in PLACES:
            _say("untrained", place, seed, _loss(loaded, start, heldout, Beginning(loaded.bos, place)))
    if options.bits:
        rounded_in_place(loaded.model, options.bits)
        _say("rounded", "no prompt, BOS", None, _loss(loaded, empty, heldout, Beginning(loaded.bos)))
    count = options.steps * options.batch_size
    texts = {
        seed: blocks(text, "train", loaded.tokenizer, options.length, count, seed, at_most=True)
        for seed in options.seeds
    }
    for place in PLACES:
        for seed in options.seeds:
            history = _trained(loaded, (texts[seed], heldout), place, seed, options)
            _say("trained", place, seed, history.best_loss, at_start=round(history.heldout[0]["loss"], 4))


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the model's folder")
    parser.add_argument("--corpus", default="embedded", help="a corpus by name, or a text file")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--bits", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=25, help="of the prompt")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--heldout", type=int, default=32, help="held-out blocks")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return parser.parse_args()


def _start(loaded: Any, tokens: int, seed: int) -> torch.Tensor:
    from idp.recover.initial import initial

    return initial(loaded, tokens, "vocabulary", "", seed)


def _loss(loaded: Any, prompt: torch.Tensor, heldout: torch.Tensor, beginning: Beginning) -> float:
    """Mean loss of held-out blocks behind a prompt [tokens, hidden_size], none where that is empty."""
    import torch

    from idp.evaluate.engine import LocalEngine
    from idp.evaluate.perplexity import window_losses
    from idp.evaluate.scorer import Scorer
    from idp.prompting.bank import PromptBank
    from idp.prompting.repaired import RepairedModel

    bank = PromptBank([prompt], ["one"], beginning=beginning) if len(prompt) else None
    if bank is None:
        loaded = type(loaded)(loaded.model, loaded.tokenizer, beginning.tokens)
    losses = window_losses(Scorer(LocalEngine(RepairedModel(loaded, bank)), 2048), heldout)
    return float(torch.tensor(losses).mean())


def _trained(loaded: Any, text: tuple[torch.Tensor, torch.Tensor], place: str, seed: int, options: Any) -> Any:
    from idp.config import Training
    from idp.recover.context import RepairContext
    from idp.recover.tuning import tune

    training = Training(
        options.steps,
        options.batch_size,
        options.length,
        options.learning_rate,
        0.0,
        max(1, options.steps // 10),
        1.0,
        options.steps,  # evaluated at its start and its end
        options.heldout,
        options.steps,
        "lm",
        1.0,
        0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        start, beginning = _start(loaded, options.tokens, seed), Beginning(loaded.bos, place)
        context = RepairContext(
            loaded, seed, Path(folder), Path(folder), text, label=f"{place} {seed}", beginning=beginning
        )
        return tune(context, start, training)[1]


def rounded_in_place(model: Any, bits: int) -> None:
    """Rounds the decoder layers' weights to nearest in groups of a row's neighbours, symmetric, in place."""
    import torch
    from torch import nn

    top = 2 ** (bits - 1) - 1
    head = model.get_output_embeddings()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer is not head and layer.weight.shape[1] % GROUP == 0:
                groups = layer.weight.float().view(len(layer.weight), -1, GROUP)
                scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
                rounded = (groups / scale).round().clamp(-top - 1, top) * scale
                layer.weight.copy_(rounded.view_as(layer.weight))


def _say(what: str, place: str, seed: int | None, loss: float, **more: float) -> None:
    print(json.dumps({"what": what, "place": place, "seed": seed, "loss": round(loss, 4), **more}), flush=True)


if __name__ == "__main__":
    main()
