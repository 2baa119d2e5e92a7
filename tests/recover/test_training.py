"""The training loop: it learns, keeps the best, and a killed run ends as an undisturbed one, bit for bit."""

import pytest
import torch

from idp.config import Search, Training
from idp.errors import UserError
from idp.prompting.masks import attention_mask
from idp.recover import lora
from idp.recover.context import RepairContext
from idp.recover.initial import embed, initial
from idp.recover.lora import Lora
from idp.recover.training import schedule, train
from idp.recover.tuning import tune


def options(**changes):
    values = {
        "steps": 12,
        "batch_size": 2,
        "sequence_length": 24,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "warmup_steps": 2,
        "clip": 1.0,
        "evaluate_every": 4,
        "heldout_sequences": 4,
        "checkpoint_every": 4,
        "objective": "lm",
        "temperature": 1.0,
        "lm_weight": 0.0,
    }
    return Training(**{**values, **changes})


def adapter(dropout, training):
    targets = ["q_proj", "v_proj"]
    return Lora("lora", training, Search([], [], 1), rank=4, alpha=8.0, dropout=dropout, targets=targets)


@pytest.fixture
def blocks():
    """Blocks in which every second token is the same: there is something to learn."""
    blocks = torch.randint(1, 250, (16, 24), generator=torch.Generator().manual_seed(1))
    blocks[:, ::2] = 7
    return blocks[:12], blocks[12:]


def test_a_prompt_lowers_the_heldout_loss(open_tiny, blocks, tmp_path):
    loaded = open_tiny("llama")
    start = initial(loaded, 5, "vocabulary", "", 0)
    prompt, history = tune(RepairContext(loaded, 0, tmp_path, tmp_path, blocks), start, options(steps=30))
    assert history.best_loss < history.heldout[0]["loss"] - 0.05
    assert history.best_loss == min(row["loss"] for row in history.heldout)
    assert prompt.shape == start.shape and not torch.equal(prompt, start)
    assert [row["step"] for row in history.train] == list(range(1, 31))


def test_the_shared_prefix_gives_the_plain_gradient(open_tiny, blocks):
    """The prompt's states are computed once for the batch; the gradient is that of the plain way."""
    from torch.nn.functional import cross_entropy

    from idp.prompting.caches import cache_of
    from idp.prompting.states import run_prompt

    def next_token_loss(logits, tokens):
        return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    loaded, batch = open_tiny("llama"), blocks[0][:3]
    rows, width = batch.shape

    def gradient(loss_of):
        prompt = torch.nn.Parameter(initial(loaded, 5, "vocabulary", "", 0))
        loss = loss_of(prompt)
        loss.backward()
        return loss.item(), prompt.grad

    def shared(prompt):
        states = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in run_prompt(loaded.model, prompt)]
        positions = torch.arange(5 + width)[None]
        visible = torch.ones(1, width, 5 + width, dtype=torch.bool).tril(5)
        logits = loaded.model(
            input_ids=batch,
            attention_mask=attention_mask(loaded.model, visible, positions[:, 5:], positions),
            position_ids=positions[:, 5:].expand(rows, -1),
            past_key_values=cache_of(states),
        ).logits
        return next_token_loss(logits, batch)

    def plain(prompt):
        embedded = loaded.model.get_input_embeddings()(batch)
        whole = torch.cat([prompt.expand(rows, -1, -1), embedded], dim=1)
        return next_token_loss(loaded.model(inputs_embeds=whole).logits[:, 5:], batch)

    (loss, found), (expected_loss, expected) = gradient(shared), gradient(plain)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 5, 8, 11])
@pytest.mark.parametrize("kind", ["prompt", "lora"])
def test_killed_and_resumed_equals_undisturbed(kind, kill_at, open_tiny, blocks, tmp_path, monkeypatch):
    def run(folder, report=None):
        loaded = open_tiny("llama")
        if kind == "prompt":
            start = initial(loaded, 5, "vocabulary", "", 0)
            context = RepairContext(loaded, 3, folder / "ckpt", folder, blocks, report)
            prompt, history = tune(context, start, options())
            return {"prompt": prompt}, history
        recovery = adapter(0.3, options())
        plain = report and (lambda row: report({key.removeprefix("lora/"): value for key, value in row.items()}))
        _, history = lora.tune(RepairContext(loaded, 3, folder / "ckpt", folder, blocks, plain), recovery)
        from safetensors.torch import load_file

        return load_file(folder / "adapter" / "adapter_model.safetensors"), history

    def kill(row):
        if row["step"] == kill_at and "loss" in row:
            raise Killed

    told, again, steps, step = [], [], [], torch.optim.AdamW.step
    expected, whole = run(tmp_path / "undisturbed", told.append)
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *given, **named: steps.append(1) or step(*given, **named))
    found, history = run(tmp_path / "killed", again.append)
    assert sorted(again, key=str) == sorted(told, key=str), "what was reported before the kill is reported again"
    assert vars(history) == vars(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    saved = (kill_at - 1) // options().checkpoint_every * options().checkpoint_every
    assert len(steps) == options().steps - saved, "finished steps were repeated"


@pytest.mark.parametrize("damage", ["cut", "flip"])
@pytest.mark.parametrize("name", ["step-*.safetensors", "state.json"])
def test_a_damaged_checkpoint_starts_anew(name, damage, open_tiny, blocks, tmp_path, caplog):
    loaded = open_tiny("llama")
    start = initial(loaded, 5, "vocabulary", "", 0)
    expected, _ = tune(RepairContext(loaded, 3, tmp_path, tmp_path, blocks), start, options())
    (file,) = tmp_path.glob(name)
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:50])
    elif name == "state.json":  # a digit of the best loss, which no parser misses
        best = content.index(b'"best_loss": ') + len(b'"best_loss": ')
        file.write_bytes(content[:best] + b"0" + content[best + 1 :])
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    found, _ = tune(RepairContext(loaded, 3, tmp_path, tmp_path, blocks), start, options())
    assert torch.equal(found, expected) and "this part starts anew" in caplog.text


def test_a_loss_that_is_no_number_stops(tmp_path):
    weight = torch.nn.Parameter(torch.ones(1))
    calls = []

    def loss_of(batch):
        calls.append(1)
        return (weight * (float("nan") if torch.is_grad_enabled() and len(calls) > 5 else 1.0)).sum()

    blocks = torch.zeros(8, 4, dtype=torch.long)
    with pytest.raises(UserError, match=r"the loss is nan .* at step \d+; lower recovery.training.learning_rate=0.05"):
        train({"w": weight}, loss_of, blocks, blocks[:2], options(), seed=0, checkpoint=tmp_path, label="test")


def test_the_model_stays_frozen(open_tiny, blocks, tmp_path):
    loaded = open_tiny("llama")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    tune(RepairContext(loaded, 0, tmp_path, tmp_path, blocks), initial(loaded, 5, "random", "", 0), options())
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_schedule():
    rates = [schedule(step, 10, 4) for step in range(1, 11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


@pytest.mark.parametrize("init", ["vocabulary", "first_rows", "text", "random"])
def test_initial_values(init, open_tiny):
    loaded = open_tiny("llama")
    one = initial(loaded, 6, init, "abc", 0)
    assert one.shape == (6, 64) and torch.equal(one, initial(loaded, 6, init, "abc", 0))
    assert torch.equal(one, initial(loaded, 6, init, "abc", 1)) == (init in ("first_rows", "text"))
    weight = loaded.model.get_input_embeddings().weight
    if init == "first_rows":
        assert torch.equal(one, weight[:6])
    if init == "text":
        assert torch.equal(one, embed(loaded, loaded.tokenizer("abcabc")["input_ids"]))


def test_text_without_tokens_is_refused(open_tiny):
    with pytest.raises(UserError, match="recovery.init_text has no tokens"):
        initial(open_tiny("llama"), 6, "text", "", 0)


def test_lora_targets_that_match_nothing(open_tiny):
    with pytest.raises(UserError, match="no layer is called query; there are .*q_proj.*v_proj"):
        lora.check_targets(open_tiny("llama"), ["q_proj", "query"])


def test_lora_attached_gives_the_logits_it_was_trained_with(open_tiny, blocks, tmp_path):
    loaded = open_tiny("llama")
    recovery = adapter(0.0, options(steps=6))
    count, history = lora.tune(RepairContext(loaded, 0, tmp_path / "c", tmp_path, blocks), recovery)
    assert count == 2 * 4 * ((64 + 64) + (64 + 32))  # two layers; q is 64 x 64, v is 64 x 32
    tokens, plain = blocks[1], open_tiny("llama")
    assert history.best_loss < history.heldout[0]["loss"]
    attached = lora.attach(open_tiny("llama"), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, plain.model(tokens).logits), "an adapter was left in the model"
        logits = attached.model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(history.best_loss, abs=1e-5)


@pytest.mark.parametrize(("family", "scale"), [("llama", 1.0), ("gemma3_text", 8.0)])
def test_a_random_start_has_the_size_of_what_the_layers_get(family, scale, open_tiny):
    """Gemma scales what it looks up by the root of the hidden size, 8 here; elsewhere nothing changes."""
    loaded = open_tiny(family)
    table = loaded.model.get_input_embeddings().weight.float()
    drawn = torch.randn(6, table.shape[1], generator=torch.Generator().manual_seed(3))
    expected = (table * scale).mean(0) + (table * scale).std(0) * drawn
    found = initial(loaded, 6, "random", "", 3)
    if scale == 1.0:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)
