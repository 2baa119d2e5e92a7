"""Every method that trains, through the stage: it learns, resumes bit for bit, and stops where its loss does."""

import pytest
import torch

from idp import models
from idp.errors import UserError
from idp.recover import lora, opening, stage
from idp.recover.training import Diverged
from idp.store import Store

from ..alive import counted
from .conftest import METHODS


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_it_lowers_the_heldout_loss(method, recovered):
    _, _, repair = recovered(method, "recovery.training.steps=30", "recovery.training.learning_rate=0.01")
    for name, history in repair.read("history.json").items():
        assert history["best_loss"] < history["heldout"][0]["loss"] - 0.01, name
        assert history["best_loss"] == min(row["loss"] for row in history["heldout"])


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_equals_undisturbed(method, recovered):
    """Killed again and again, each time a little later; whatever was checkpointed is not done again."""
    _, _, expected = recovered(method, store="undisturbed")
    kills, found = 0, None
    while found is None:
        steps = []

        def report(row, steps=steps, last=3 * kills + 3):
            steps.append(row)
            if len(steps) == last:
                raise Killed

        try:
            _, _, found = recovered(method, store="killed", report=report)
        except Killed:
            kills += 1
    assert kills >= 1
    same = ("safetensors", "history.json", "repair.json")  # an adapter's config names the store's folder
    one, other = ({n: h for n, h in each.manifest["files"].items() if n.endswith(same)} for each in (found, expected))
    assert one == other and len(one) >= 3


@pytest.mark.parametrize("method", METHODS)
def test_what_is_reported_live_is_what_is_stored(method, recovered):
    """A run that reuses a repair shows the curves that the one that made it showed."""
    rows = []
    _, _, repair = recovered(method, report=rows.append)

    def known(rows):
        return sorted(sorted(row.items()) for row in rows)

    assert known(rows) == known(stage.training_rows(repair)) and rows


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_no_number_stops_and_leaves_the_best(method, recovered, monkeypatch, tmp_path):
    """From the fourth training step on the loss is NaN."""
    from safetensors.torch import load_file

    from idp.recover.nets import head_loss

    steps = []
    plain = head_loss._HeadLoss.forward

    def poisoned(ctx, *arguments):
        loss = plain(ctx, *arguments)
        steps.append(ctx.needs_input_grad[0])
        return loss * float("nan") if ctx.needs_input_grad[0] and sum(steps) > 3 else loss

    monkeypatch.setattr(head_loss._HeadLoss, "forward", staticmethod(poisoned))
    with pytest.raises(
        Diverged, match=r"the loss is nan .* at step 4; lower recovery.training.learning_rate"
    ) as caught:
        recovered(method)
    assert "\n" not in str(caught.value)
    (best,) = (tmp_path / "store" / "recover").rglob("best.safetensors")
    assert str(best) in str(caught.value)
    assert all(bool(value.isfinite().all()) for value in load_file(best).values())


@pytest.mark.parametrize("method", METHODS)
def test_more_prompt_than_the_window_is_refused(method, small, text, tmp_path):
    long = dict.fromkeys(("lora", "masked_lora", "norms"), "recovery.training.sequence_length=3000")
    lengths = "recovery.lengths=[2100]" if "idp" in method else long.get(method, "recovery.length=2100")
    config = small(method, lengths)
    dense = models.load(config.model, models.find_model(config.model), Store(tmp_path))
    empty = models.open_empty(models.model_folder(dense), config.model)
    with pytest.raises(UserError, match="do not fit in the model's window of 2048"):
        stage.check(config.recovery, empty, text)


def test_the_adapters_window_counts_as_well(small, text, tmp_path):
    config = small("lora_idp", "recovery.lora.training.sequence_length=3000")
    dense = models.load(config.model, models.find_model(config.model), Store(tmp_path))
    with pytest.raises(UserError, match="do not fit in the model's window of 2048"):
        stage.check(config.recovery, models.open_empty(models.model_folder(dense), config.model), text)


def test_lora_idp_shares_its_adapter_with_lora(recovered):
    """The same LoRA is trained once, whichever of the two asks first; its parameters count in both."""
    _, _, both = recovered("lora_idp")
    _, _, alone = recovered("lora")
    assert alone.reused
    files = both.manifest["files"]
    assert files["adapter/adapter_model.safetensors"] == alone.manifest["files"]["adapter/adapter_model.safetensors"]
    bank = 9 * 64
    assert both.read("repair.json")["added"] == alone.read("repair.json")["added"] + bank
    assert set(both.read("history.json")) == {"lora", "prompt_0", "prompt_1"}


def test_both_halves_of_lora_idp_are_in_the_model(recovered):
    """Its logits are those of the adapter and the prompt; leaving out either changes them."""
    from idp.prompting.bank import PromptBank
    from idp.prompting.repaired import RepairedModel

    config, dense, repair = recovered(
        "lora_idp",
        "recovery.lengths=[5]",
        "recovery.training.learning_rate=0.05",
        "recovery.lora.training.learning_rate=0.05",
    )
    tokens = [5, 6, 7, 8]

    def logits(repaired):
        from idp.prompting.attention.group import TRUNK
        from idp.prompting.packing import pack

        choice = None if repaired.bank is None else [0]
        packed = pack([tokens], [range(4)], [[TRUNK] * 4], choice, repaired.prefixes, repaired.model, repaired.device)
        return torch.cat([part for _, part in repaired.logits_at(packed, torch.arange(4))])

    with torch.no_grad():
        found = logits(opening.open_repaired(config.model, dense, repair, config.recovery))
        bank = PromptBank.load(repair.path / "bank")
        plain = models.open_model(models.model_folder(dense), config.model)
        only_bank = logits(RepairedModel(plain, bank))
        adapted = lora.attach(models.open_model(models.model_folder(dense), config.model), repair.path / "adapter")
        only_adapter = logits(RepairedModel(adapted))
        embedded = torch.cat([bank.prompts[0], adapted.model.get_input_embeddings()(torch.tensor(tokens))])
        expected = adapted.model(inputs_embeds=embedded[None]).logits[0, 5:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - only_bank).abs().max() > 1e-3 and (found - only_adapter).abs().max() > 1e-3


def test_what_latency_compares(recovered):
    config, dense, repair = recovered("lora_idp")
    names = opening.open_variants(config.model, dense, repair, config.recovery, merged=True)
    assert list(names) == ["compressed", "lora_idp", "lora_idp_merged"]
    config, dense, repair = recovered("prefix")
    assert list(opening.open_variants(config.model, dense, repair, config.recovery, True)) == ["compressed", "prefix"]


def test_latency_variants_are_the_models_that_they_say(recovered):
    """On one set of weights: plain with the adapters taken out, adapted with them in, as often as one likes."""
    config, compressed, repair = recovered("lora")
    with counted() as alive:
        variants = opening.open_variants(config.model, compressed, repair, config.recovery, merged=True)
    assert alive.opened == 1 and variants.by_shape == {"lora_merged": "compressed"}
    plain = models.open_model(models.model_folder(compressed), config.model)
    adapted = lora.attach(models.open_model(models.model_folder(compressed), config.model), repair.path / "adapter")
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = {"compressed": plain.model(tokens).logits, "lora": adapted.model(tokens).logits}
        expected["lora_merged"] = expected["compressed"]  # by shape
        assert not torch.equal(expected["compressed"], expected["lora"])
        for name in ["compressed", "lora", "lora_merged", "lora", "compressed"]:
            assert torch.equal(variants.ready(name).model(tokens).logits, expected[name])


def test_options_that_change_nothing_share_a_key(recovered):
    _, _, one = recovered("prefix")
    unused = ["recovery.encoder_hidden_size=99", "recovery.init_text=other", "recovery.training.temperature=2"]
    _, _, other = recovered("prefix", *unused, "recovery.training.checkpoint_every=3")
    assert other.reused and other.key == one.key
    _, _, different = recovered("prefix", "recovery.init=random")
    assert different.key != one.key
