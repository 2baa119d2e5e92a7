"""Banks made automatically: clusters, specialists, prompts joined from files; each against something plain."""

import itertools
import json
import logging

import pytest
import torch

from idp.config import Fitting, Search, Selector, Storage, Training
from idp.errors import UserError
from idp.prompting.bank import PromptBank
from idp.recover import existing
from idp.recover.banks import assembled, cluster, specialists
from idp.recover.banks.assembled import AssembledBank
from idp.recover.banks.cluster import ClusterBank
from idp.recover.banks.independent import IndependentBank
from idp.recover.banks.mixture import MixtureBank
from idp.recover.banks.specialists import SpecialistsBank
from idp.recover.context import RepairContext
from idp.recover.idp import Idp
from idp.recover.initial import initial

TINY = ("model=tiny_llama", "budget=smoke", "tracker=none", "task=arc_easy", "baselines=false")
QUICK = (*TINY, "recovery=idp", "recovery.controls=false", "evaluation.perplexity=[]", "recovery.lengths=[3,3,5]")


def options(bank, lengths=(4, 4), **changes):
    training = {
        "steps": 8,
        "batch_size": 2,
        "sequence_length": 24,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "warmup_steps": 1,
        "clip": 1.0,
        "evaluate_every": 4,
        "heldout_sequences": 4,
        "checkpoint_every": 2,
    }
    training |= {"objective": "lm", "temperature": 1.0, "lm_weight": 0.0}
    return Idp(
        kind="idp",
        lengths=list(lengths),
        init="vocabulary",
        init_text="",
        selector=Selector("attention"),
        controls=False,
        fit=Fitting(4, 16, 8),
        training=Training(**{**training, **changes}),
        search=Search([], [], 1),
        bank=bank,
        storage=Storage(32, 0.0, True, "bfloat16"),
    )


def made(recovery, loaded, text, folder, seed=0, report=None):
    """The bank that a recovery makes, and its histories."""
    result = recovery.make(RepairContext(loaded, seed, folder, folder, text, report))
    return result.bank, result.histories


def hard(**changes):
    values = {"mixture": "hard", "balanced": True, "temperature": 0.1, "diversity": 0.0}
    return SpecialistsBank("specialists", **{**values, **changes})


@pytest.fixture
def two_kinds():
    """Blocks of two kinds, from tokens that the other kind does not have, mixed: 24 to train on, 8 held out; kinds."""
    draw = torch.Generator().manual_seed(1)
    kinds = torch.arange(32) % 2
    blocks = torch.stack([torch.randint(*((5, 9), (200, 204))[kind], (24,), generator=draw) for kind in kinds])
    return (blocks[:24], blocks[24:]), kinds[:24]


# Clusters


def test_clusters_find_the_two_kinds(open_tiny, two_kinds, tmp_path):
    text, kinds = two_kinds
    loaded = open_tiny("llama")
    bank, histories = made(options(ClusterBank("cluster", None, 2, 0.25)), loaded, text, tmp_path)
    labels = cluster._kept(tmp_path / "clusters", lambda: pytest.fail("the clusters were not kept"))["labels"]
    assert torch.equal(labels, kinds) or torch.equal(labels, 1 - kinds)
    assert bank.made == {"kind": "cluster", "clusters": [12, 12], "blocks": [12, 12]}
    assert list(histories) == ["prompt_0", "prompt_1"]

    embeddings = loaded.model.get_input_embeddings()
    for number in range(2):
        expected = embeddings(text[0][labels == number]).mean((0, 1))
        torch.testing.assert_close(bank.centres[number], expected, atol=1e-6, rtol=1e-5)


def test_a_prompt_reads_its_own_cluster_alone(open_tiny, two_kinds, tmp_path, monkeypatch):
    text, _ = two_kinds
    seen = []

    def tune(context, start, training, kind):
        from idp.recover.training import History

        seen.append(context.text)
        return start, History(heldout=[{"step": 0, "loss": 1.0}])

    monkeypatch.setattr("idp.recover.tuning.tune", tune)
    made(options(ClusterBank("cluster", None, 2, 0.25)), open_tiny("llama"), text, tmp_path)
    for part in (0, 1):
        found = {tuple(block.tolist()) for block in seen[0][part]} | {tuple(block.tolist()) for block in seen[1][part]}
        assert found == {tuple(block.tolist()) for block in text[part]}
        for own in seen:
            low = own[part] < 100
            assert low.all() or not low.any(), "blocks of both kinds"


def test_text_embeddings_are_mean_final_states(open_tiny, two_kinds):
    loaded, blocks = open_tiny("llama"), two_kinds[0][0][:5]
    with torch.no_grad():
        states = loaded.model(blocks, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(cluster.text_embeddings(loaded, blocks, 2), states.mean(1), atol=1e-5, rtol=0)


def test_k_means_is_seeded():
    points = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    one, other = (cluster.k_means(points, 4, 1, 3) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert any(not torch.equal(one[0], cluster.k_means(points, 4, 1, seed)[0]) for seed in range(4, 8))


def test_small_and_empty_clusters_are_filled_up_with_the_nearest(caplog):
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    distances = torch.stack([torch.zeros(8), torch.arange(8.0), 10 - torch.arange(8.0)], dim=1)
    found = cluster.fill_up(labels, distances, 0.75)  # two blocks at least
    assert [own.tolist() for own in found] == [list(range(7)), [0, 7], [6, 7]]
    assert "cluster 1 has 1 of 8 blocks: filled up to 2" in caplog.text and "cluster 2 has 0 of 8" in caplog.text
    assert [len(own) for own in cluster.fill_up(labels, distances, 0.0)] == [7, 1, 1]


def test_equal_blocks_still_make_clusters(open_tiny, tmp_path):
    blocks = torch.full((6, 24), 7)
    few = (blocks, blocks[:1])
    bank, _ = made(options(ClusterBank("cluster", None, 1, 0.5)), open_tiny("llama"), few, tmp_path)
    assert len(bank) == 2 and min(bank.made["blocks"]) >= 2


def test_fewer_blocks_than_clusters(open_tiny, two_kinds, tmp_path):
    text = two_kinds[0][0][:1], two_kinds[0][1]
    with pytest.raises(UserError, match="1 training blocks cannot make 2 clusters"):
        made(options(ClusterBank("cluster", None, 1, 0.5)), open_tiny("llama"), text, tmp_path)


# Specialists


def slow_assignment(costs):
    """The least total cost over every assignment with shares that differ by one at most: tried one by one."""
    blocks, prompts = costs.shape
    share, over = divmod(blocks, prompts)
    best = float("inf")
    for owners in itertools.product(range(prompts), repeat=blocks):
        counts = [owners.count(prompt) for prompt in range(prompts)]
        if min(counts) >= share and max(counts) <= share + (over > 0):
            best = min(best, sum(costs[block, owner].item() for block, owner in enumerate(owners)))
    return best


@pytest.mark.parametrize(("blocks", "prompts"), [(4, 2), (6, 3), (5, 2), (7, 3), (5, 3), (2, 3), (1, 4), (3, 1)])
def test_balanced_assignment_equals_trying_all(blocks, prompts):
    for seed in range(5):
        costs = torch.rand(blocks, prompts, generator=torch.Generator().manual_seed(seed))
        if seed == 4:
            costs[:, 0] -= 2.0  # one prompt is better at everything: it still gets its share alone
        owners = specialists.assign(costs)
        counts = owners.bincount(minlength=prompts)
        assert counts.max() - counts.min() <= 1
        found = costs[torch.arange(blocks), owners].sum().item()
        assert found == pytest.approx(slow_assignment(costs), abs=1e-6)


def test_losses_per_block_are_the_plain_ones(open_tiny, make_bank, two_kinds):
    loaded, batch = open_tiny("llama"), two_kinds[0][0][:3]
    prompts = make_bank(loaded, [3, 6]).prompts
    with torch.no_grad():
        found = specialists.losses(loaded, prompts, batch)
        for block, tokens in enumerate(batch):
            for number, prompt in enumerate(prompts):
                whole = torch.cat([prompt, loaded.model.get_input_embeddings()(tokens)])[None]
                logits = loaded.model(inputs_embeds=whole).logits[:, len(prompt) :]
                expected = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[1:])
                assert found[block, number].item() == pytest.approx(expected.item(), abs=1e-5)


def test_responsibilities():
    costs = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    costs[:, 1] -= 1.0
    plain = specialists.responsibilities(costs, hard(mixture="soft", balanced=False, temperature=0.5))
    torch.testing.assert_close(plain, (-costs / 0.5).softmax(1))
    shared = specialists.responsibilities(costs, hard(mixture="soft", temperature=0.5))
    torch.testing.assert_close(shared.sum(1), torch.ones(12), atol=1e-6, rtol=0)
    torch.testing.assert_close(shared.sum(0), torch.full((3,), 4.0), atol=0, rtol=2e-3)
    cold = specialists.responsibilities(costs, hard(mixture="soft", temperature=0.01))
    assert torch.equal(cold.argmax(1), specialists.assign(costs))  # its limit is the hard assignment
    free = specialists.responsibilities(costs, hard(), free=True)
    assert torch.equal(free.argmax(1), costs.argmin(1)) and torch.equal(free.sum(1), torch.ones(12))


def test_the_diversity_term_pushes_prompts_apart():
    prompts = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) + 1.0 for n in (2, 3, 5)]
    prompts = [prompt.requires_grad_() for prompt in prompts]
    before = specialists.similarity(prompts)
    means = [prompt.mean(0) for prompt in prompts]
    pairs = [torch.cosine_similarity(means[a], means[b], dim=0) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert before.item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    before.backward()
    after = specialists.similarity([prompt.detach() - 0.5 * prompt.grad for prompt in prompts])
    assert after < before
    assert specialists.similarity(prompts[:1]).item() == 0.0


def test_two_kinds_of_text_make_two_specialists(open_tiny, two_kinds, tmp_path, monkeypatch):
    text, _ = two_kinds
    shares, assign = [], specialists.assign

    def watched(costs):
        owners = assign(costs)
        shares.append(owners.bincount(minlength=2).tolist())
        return owners

    monkeypatch.setattr(specialists, "assign", watched)
    loaded = open_tiny("llama")
    bank, histories = made(options(hard(), steps=30), loaded, text, tmp_path)
    assert len(shares) >= 30 and all(share[0] == share[1] for share in shares)
    with torch.no_grad():
        owners = specialists.losses(loaded, bank.prompts, text[1]).argmin(1)
    kinds = torch.arange(8) % 2
    assert torch.equal(owners, kinds) or torch.equal(owners, 1 - kinds)
    assert bank.made == {"kind": "specialists", "heldout_choices": [4, 4]}
    assert bank.centres.shape == (2, 64) and not torch.equal(bank.centres[0], bank.centres[1])
    history = histories["specialists"]
    assert history.best_loss < history.heldout[0]["loss"] and len(history.train) == 30


def test_the_gradient_reaches_the_assigned_prompt_alone(open_tiny, two_kinds, tmp_path, monkeypatch):
    """With every block assigned to prompt 1, prompt 0 stays as it started."""
    text, _ = two_kinds
    monkeypatch.setattr(specialists, "assign", lambda costs: torch.ones(len(costs), dtype=torch.long))
    monkeypatch.setattr(specialists, "centres", lambda *_: None)
    loaded = open_tiny("llama")
    bank, _ = made(options(hard(), steps=4), loaded, text, tmp_path)
    starts = [initial(loaded, 4, "vocabulary", "", seed) for seed in (0, 1000)]
    assert torch.equal(bank.prompts[0], starts[0]) and not torch.equal(bank.prompts[1], starts[1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("bank", [hard(), hard(mixture="soft", diversity=0.1), ClusterBank("cluster", None, 2, 0.25)])
def test_killed_and_resumed_equals_undisturbed(bank, open_tiny, two_kinds, tmp_path):
    def run(folder, report=None):
        text, _ = two_kinds
        return made(options(bank), open_tiny("llama"), text, tmp_path / folder, seed=3, report=report)

    def kill(row):
        if row["step"] == 5 and any(name.endswith("gradient_norm") for name in row):
            raise Killed

    expected, whole = run("undisturbed")
    with pytest.raises(Killed):
        run("killed", kill)
    found, history = run("killed")
    assert {name: vars(one) for name, one in history.items()} == {name: vars(one) for name, one in whole.items()}
    assert all(torch.equal(one, other) for one, other in zip(found.prompts, expected.prompts, strict=True))
    assert torch.equal(found.centres, expected.centres) and found.made == expected.made


def test_independent_prompts_keep_their_own_text_and_history(open_tiny, two_kinds, tmp_path):
    text, _ = two_kinds
    bank, histories = made(options(IndependentBank("independent"), (3, 5)), open_tiny("llama"), text, tmp_path)
    assert bank.names == ["prompt_0_3_tokens", "prompt_1_5_tokens"] and list(histories) == ["prompt_0", "prompt_1"]
    assert bank.centres is None and bank.made == {}


# Joined


def joined(*places):
    bank = AssembledBank("assembled")
    setattr(bank, "from", [str(place) for place in places])
    return bank


def bank_of(options):
    return options.make(None, None).bank


@pytest.fixture
def places(open_tiny, make_bank, tmp_path):
    """A bank of two prompts, and the folder of one more prompt that PEFT made."""
    from peft import PromptTuningConfig, get_peft_model

    loaded = open_tiny("llama")
    make_bank(loaded, [3, 4]).save(tmp_path / "bank", loaded.model.config, "mine")
    adapted = get_peft_model(loaded.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    adapted.save_pretrained(tmp_path / "theirs")
    return tmp_path


def test_prompts_of_several_places_in_order_with_names_of_their_own(places):
    bank = bank_of(joined(places / "theirs", places / "bank", places / "bank" / "prompt_1", places / "theirs"))
    assert bank.lengths == [5, 3, 4, 4, 5]
    assert bank.names == ["theirs", "prompt_0", "prompt_1", "prompt_1_2", "theirs_2"]
    assert torch.equal(bank.prompts[2], bank.prompts[3]) and torch.equal(bank.prompts[0], bank.prompts[4])


def test_the_key_is_the_content_wherever_it_is(places):
    import shutil

    shutil.copytree(places / "theirs", places / "elsewhere" / "theirs")
    one = joined(places / "theirs").content()
    assert one == joined(places / "elsewhere" / "theirs").content()
    assert one != joined(places / "bank").content()


def test_prompts_of_another_model_are_named(places, compose, caplog):
    found = assembled.members(joined(places / "bank"))
    model = compose("model=tiny_llama").model
    message = r"prompt prompt_0 has hidden size 64 \(mine\), this run's model 96 \(tiny_llama\): it belongs to another"
    with pytest.raises(UserError, match=message):
        existing.check(found, model, "key", 96, assembled.SETTING)
    with caplog.at_level(logging.WARNING):
        existing.check(found, model, "key", 64, assembled.SETTING)
    assert "was trained on mine, this run's model is tiny_llama: its size fits" in caplog.text
    caplog.clear()
    for member in found:
        member.base_model = "somebody/Tiny_Llama"
    existing.check(found, model, "key", 64, assembled.SETTING)
    assert not caplog.text


def test_places_without_prompts(places, tmp_path):
    with pytest.raises(UserError, match="recovery.bank.from=.*nowhere: no such file or folder"):
        assembled.members(joined(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no record.json or repair.json in it"):
        assembled.members(joined(tmp_path / "empty"))
    nothing = PromptBank([torch.zeros(0, 64)] * 2, ["expert_0", "expert_1"])
    nothing.save(tmp_path / "experts", None, "mine")
    with pytest.raises(UserError, match="recovery.bank.from: .*experts: none of its prompts has any tokens"):
        assembled.members(joined(tmp_path / "experts"))


# Whole runs


@pytest.mark.parametrize("bank", ["cluster", "specialists", "mixture"])
def test_a_bank_runs_from_end_to_end(bank, run_here, tmp_path):
    mixed = ("recovery.lengths=[4,4,4]", "recovery/selector=nearest", "recovery.selector.temperature=0.5")
    record = run_here(*QUICK, "compressor=none", f"recovery/bank={bank}", *(mixed if bank == "mixture" else ()))
    about = record["idp"]
    prompts, centres = (12 * 64, 3 * 64) if bank == "mixture" else (11 * 64, 0)
    assert about["parameters"]["added"] == prompts + centres and about["repair_bytes"] == prompts * 4
    assert sum(about["selection"]["arc_easy"].values()) == 8
    folder = tmp_path / "outputs" / "store" / "recover" / about["stages"]["recover"]["key"] / "bank"
    assert PromptBank.load(folder).centres.shape == (3, 64)
    assert json.loads((folder / "bank.json").read_text())["made"]["kind"] == bank
    assert list(about["training"]) == ([bank] if bank != "cluster" else ["prompt_0", "prompt_1", "prompt_2"])


def test_an_assembled_bank_runs_and_trains_nothing(places, run_here, monkeypatch):
    base = (*TINY, "compressor=none", "recovery=idp", "recovery/bank=assembled", "evaluation.perplexity=[]")
    base += ("recovery.controls=false",)
    monkeypatch.setattr("idp.recover.making._text", lambda *_: pytest.fail("it asked for training text"))
    record = run_here(*base, f"recovery.bank.from=[{places / 'bank'},{places / 'theirs'}]")["idp"]
    assert list(record["selection"]["arc_easy"]) == ["prompt_0", "prompt_1", "theirs"]
    assert record["parameters"]["added"] == 12 * 64 and record["training"] is None
    assert record["config"]["recovery"]["lengths"] == [3, 4, 5]
    key = record["stages"]["recover"]["key"]
    again = run_here(*base, f"recovery.bank.from=[{places / 'bank'},{places / 'theirs'}]", "seed=1")["idp"]
    assert again["stages"]["recover"]["key"] == key and again["stages"]["recover"]["reused"]


def test_storage_is_applied_after_training(run_here, tmp_path):
    base = (*QUICK, "compressor=none")
    trained = run_here(*base)["idp"]
    for bits, expected in {16: 11 * 64 * 2, 8: 11 * (64 + 4), 4: 11 * (32 + 4)}.items():
        about = run_here(*base, f"recovery.storage.bits={bits}")["idp"]
        assert about["repair_bytes"] == expected
        store = tmp_path / "outputs" / "store" / "recover"
        product = store / about["stages"]["recover"]["key"]
        assert json.loads((product / "manifest.json").read_text())["parent"] == trained["stages"]["recover"]["key"]
        assert about["training"] == trained["training"]
        assert (product / "bank" / "prompt_0" / "adapter_model.safetensors").exists() == (bits == 16)
        one, other = (PromptBank.load(place / "bank").prompts[0] for place in (
            product, store / trained["stages"]["recover"]["key"]))  # fmt: skip
        assert not torch.equal(one, other) and (one - other).abs().max() < 0.1
    assert len(list(store.glob("*/manifest.json"))) == 4


# Mixtures.


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("objective", ["lm", "distill"])
def test_a_mixture_is_trained_behind_the_mean_that_its_weights_give(family, objective, open_tiny, two_kinds, tmp_path):
    """The held-out loss before any step: all prompts are one; after training: a plain pass over each block alone."""
    from idp.prompting.caches import cache_of
    from idp.prompting.states import run_prompt

    loaded = open_tiny(family)
    text, _ = two_kinds
    recovery = options(MixtureBank("mixture", 0.5, 2, 6), (4, 4, 4), objective=objective)
    context = RepairContext(loaded, 0, tmp_path, tmp_path, text)
    context.teacher = open_tiny(family) if objective == "distill" else None
    result = recovery.make(context)
    bank, history = result.bank, result.histories["mixture"]
    assert bank.lengths == [4, 4, 4] and bank.centres.shape == (3, 64) and result.trainable == 3 * 4 * 64
    assert bank.made == {"kind": "mixture", "temperature": 0.5}
    assert history.best_loss < history.heldout[0]["loss"] and not torch.equal(bank.prompts[0], bank.prompts[1])
    embed, losses = loaded.model.get_input_embeddings().weight, []
    apart = torch.cdist(bank.centres, bank.centres).square().sum() / 6
    for block in text[1]:
        nearness = -(embed[block[:6]].mean(0) - bank.centres).square().sum(1)
        weights = (nearness / (0.5 * apart)).softmax(0).tolist()
        runs = [run_prompt(loaded.model, prompt) for prompt in bank.prompts]
        layers = [
            tuple(sum(w * run[layer][part] for w, run in zip(weights, runs, strict=True)) for part in (0, 1))
            for layer in range(2)
        ]
        places = torch.arange(4, 4 + len(block))[None]
        with torch.no_grad():
            logs = (
                loaded.model(input_ids=block[None], position_ids=places, past_key_values=cache_of(layers))
                .logits[0, :-1]
                .log_softmax(-1)
            )
            plain = loaded.model(block[None]).logits[0, :-1].log_softmax(-1)
        if objective == "lm":
            losses.append(-logs.gather(1, block[1:, None]).mean().item())
        else:
            losses.append((plain.exp() * (plain - logs)).sum(-1).mean().item())
    assert history.best_loss == pytest.approx(sum(losses) / 8, abs=1e-4)


def test_what_cannot_be_mixed_is_refused_before_it_is_made():
    for lengths, what in (([4], "one prompt is no mixture"), ([4, 5], "must be of one length")):
        with pytest.raises(UserError, match=what) as caught:
            options(MixtureBank("mixture", 0.5, 2, 6), lengths).check()
        assert "\n" not in str(caught.value)
