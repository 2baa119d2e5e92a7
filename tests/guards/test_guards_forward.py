"""Before any work a model is held to its own forward pass: what differs is refused, what agrees agrees with HFLM."""

import json
import random
import time

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from idp.errors import UserError
from idp.evaluate import guard, trial
from idp.evaluate.batching import Request, make_row, split_at
from idp.evaluate.engine import LocalEngine
from idp.evaluate.scorer import Scorer
from idp.evaluate.shrink import random_model, randomise
from idp.models import LoadedModel, byte_tokenizer
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.store import Store

from ..evaluate.test_scorer import multiple_choice
from ..prompting.test_prefix import ByFirstToken
from . import architectures

TINY = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i / 2 for i in range(8)],
}
PHI3 = {**TINY, "original_max_position_embeddings": 64, "rope_scaling": LONG_ROPE}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
MIXTURE = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
# Such as a pass that knows attention with keys of one width, plain masks and one set of frequencies gets wrong.
UNUSUAL = {
    "afmoe": {**TINY, "num_hidden_layers": 4, "head_dim": 16, "sliding_window": 24, "num_dense_layers": 1}
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "deepseek_v2": {**TINY, **LATENT, **MIXTURE, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**TINY, **LATENT, **MIXTURE, "n_group": 1, "topk_group": 1},
    "gpt_oss": {**TINY, "head_dim": 16, "sliding_window": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    "jetmoe": {**TINY, "num_key_value_heads": 4, "kv_channels": 16, "num_local_experts": 4},
    "llama4_text": {
        **{**TINY, "num_hidden_layers": 4, "head_dim": 16, "attention_chunk_size": 24, "num_local_experts": 2},
        **{"attn_temperature_tuning": False, "intermediate_size_mlp": 96},
    },
    "phi3": PHI3,
    "phimoe": {
        **{**TINY, "num_local_experts": 4},
        "rope_scaling": {
            **{**LONG_ROPE, "short_mscale": 1.1, "long_mscale": 1.3, "original_max_position_embeddings": 64}
        },
    },
}


def tiny(model_type, **values):
    """A small model with wide random weights and a tokenizer of bytes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**UNUSUAL.get(model_type, {}), **values})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    randomise(model)
    return LoadedModel(model, byte_tokenizer())


def prompts_of(loaded, lengths):
    """Prompts made of vocabulary rows."""
    generator = torch.Generator().manual_seed(5)
    embeddings = loaded.model.get_input_embeddings()
    drawn = [embeddings(torch.randint(1, 250, (length,), generator=generator)) for length in lengths]
    return PromptBank(drawn, [f"prompt_{i}" for i in range(len(lengths))])


@pytest.mark.parametrize("model_type", UNUSUAL)
@pytest.mark.parametrize("batch_tokens", [60, 1500])
def test_unusual_models_score_as_hflm_does_row_by_row(model_type, batch_tokens):
    from lm_eval.models.huggingface import HFLM

    loaded = tiny(model_type)
    requests = multiple_choice(random.Random(1), 8)
    hflm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1, device="cpu")
    expected = hflm.loglikelihood(requests, disable_tqdm=True)
    found = Scorer(LocalEngine(RepairedModel(loaded)), batch_tokens).loglikelihood(requests, disable_tqdm=True)
    for (value, greedy), (wanted, wanted_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-4)
        assert greedy == wanted_greedy


@pytest.mark.parametrize("model_type", UNUSUAL)
def test_unusual_models_score_behind_prompts_as_with_embeddings_in_front(model_type):
    """Prompts of 4 and 31 tokens before rows of 8 to 70, alone and behind a text that all begin with."""
    loaded, rng = tiny(model_type), random.Random(2)
    bank = prompts_of(loaded, [4, 31])
    draw = lambda count: [rng.randint(1, 250) for _ in range(count)]  # noqa: E731
    for shared in ([], draw(17)):
        rows, expected = [], []
        for trunk in (5, 30, 44, 60, 12):
            begin = draw(trunk)
            texts = [begin + draw(size) for size in (1, 3, 20)]
            rows.append(
                make_row([Request(text[:2], text[2:]) for text in texts], range(3), begin if not shared else [])
            )
            # `ByFirstToken` reads what all rows share first.
            prompt = bank.prompts[(shared or begin)[0] % 2]
            for text in texts:
                embedded = loaded.model.get_input_embeddings()(torch.tensor([(shared + text)[:-1]]))
                with torch.no_grad():
                    logits = loaded.model(inputs_embeds=torch.cat([prompt[None], embedded], dim=1)).logits[0]
                logits = logits[len(prompt) + len(shared) + 1 :].log_softmax(-1)
                expected += logits.gather(1, torch.tensor(text[2:])[:, None])[:, 0].tolist()
        engine = LocalEngine(RepairedModel(loaded, bank, ByFirstToken()))
        assert engine.score_batch(rows, shared)["values"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("model_type", UNUSUAL)
def test_unusual_models_generate_and_train_as_they_do_themselves(model_type):
    found = trial.differences(tiny(model_type).model)
    assert all(isinstance(value, float) and value < 1e-4 for value in found.values()), found


def test_a_row_s_score_does_not_depend_on_its_batch_where_frequencies_change_with_length():
    loaded = tiny("phi3")
    requests = multiple_choice(random.Random(4), 10)
    alone = [
        Scorer(LocalEngine(RepairedModel(loaded)), 4096).loglikelihood([request], disable_tqdm=True)[0][0]
        for request in requests
    ]
    for batch_tokens in (60, 4096):
        scorer = Scorer(LocalEngine(RepairedModel(loaded)), batch_tokens)
        together = [value for value, _ in scorer.loglikelihood(requests, disable_tqdm=True)]
        assert together == pytest.approx(alone, abs=1e-4)


def test_rows_are_split_between_requests_that_are_longer_than_a_limit_and_those_that_are_not():
    begin = list(range(10))
    requests = [Request(begin[:8], [8, 9, 50]), Request(begin[:8], [8, 9, *range(60, 66)]), Request(begin[:8], [8])]
    row = make_row(requests, [7, 8, 9], [])
    rows, sources, order = split_at([row], [12])
    assert sources == [0, 0] and [sorted(set(part.owners)) for part in rows] == [[7, 9], [8]]
    targets = [target for part in rows for target in part.targets]
    assert [targets[place] for place in order] == row.targets
    assert split_at([row], [100])[0] == [row] and split_at([row], [1])[0] == [row]


def test_generation_goes_on_where_a_row_outgrows_the_first_frequencies():
    loaded = tiny("phi3")
    contexts = [[1 + i % 200 for i in range(length)] for length in (60, 62, 20, 90)]
    tokenizer = loaded.tokenizer
    texts = LocalEngine(RepairedModel(loaded)).generate_batch(contexts, ["\x00never"], 8)["texts"]
    for context, text in zip(contexts, texts, strict=True):
        tokens = list(context)
        for _ in range(8):
            with torch.no_grad():
                tokens.append(int(loaded.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(tokens[len(context) :], skip_special_tokens=True)


# Faults that the trial must catch, planted in a Llama.


class Unmasked(nn.Module):
    """Adds the mean of all tokens of the sequence: a layer that no mask holds."""

    def __init__(self, beneath):
        super().__init__()
        self.beneath = beneath

    def forward(self, hidden):
        return self.beneath(hidden) + hidden.mean(dim=1, keepdim=True)


class Convolution(nn.Module):
    """Adds the token before: a causal convolution over tokens, outside attention."""

    def __init__(self, beneath):
        super().__init__()
        self.beneath = beneath

    def forward(self, hidden):
        return self.beneath(hidden) + torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)


class Counting(nn.Module):
    """Rotates by where a token stands in the tensor, whatever it is told."""

    def __init__(self, beneath):
        super().__init__()
        self.beneath = beneath

    def forward(self, hidden, position_ids):
        return self.beneath(hidden, torch.arange(position_ids.shape[1])[None])


def plant(fault, model):
    if fault is Counting:
        model.model.rotary_emb = Counting(model.model.rotary_emb)
    else:
        model.model.layers[1].mlp = fault(model.model.layers[1].mlp)
    return model


@pytest.mark.parametrize("fault", [Unmasked, Convolution, Counting])
def test_a_planted_fault_is_caught(fault):
    model = random_model(LlamaConfig(**TINY))
    sound = trial.differences(model)
    assert all(value < 1e-4 for value in sound.values()), sound
    faulty = trial.differences(plant(fault, model))
    assert faulty[trial.PACKED] > 1e-2 and faulty[trial.GENERATION_PROMPTED] > 1e-2, faulty


class PlantedConfig(LlamaConfig):
    model_type = "planted"


class PlantedForCausalLM(LlamaForCausalLM):
    config_class = PlantedConfig
    runs = 0

    def __init__(self, config):
        super().__init__(config)
        type(self).runs += 1
        plant(Convolution, self)


def test_the_refusal_names_class_layers_and_what_differs_and_is_kept(tmp_path):
    AutoConfig.register("planted", PlantedConfig, exist_ok=True)
    AutoModelForCausalLM.register(PlantedConfig, PlantedForCausalLM, exist_ok=True)
    store = Store(tmp_path)
    with pytest.raises(UserError, match=r"PlantedForCausalLM \(layers: .*\): packed rows differ .* use another model"):
        guard.check(PlantedConfig(**TINY), store)
    (answer,) = tmp_path.glob("guard/*/forward.json")
    assert json.loads(answer.read_text())[trial.PACKED] is not None
    made = PlantedForCausalLM.runs
    started = time.perf_counter()
    with pytest.raises(UserError, match="packed rows differ"):  # sizes are no part of the answer
        guard.check(PlantedConfig(**{**TINY, "hidden_size": 4096, "intermediate_size": 9000}), store)
    assert PlantedForCausalLM.runs == made and time.perf_counter() - started < 1


def test_a_store_s_answer_is_not_another_pattern_s(tmp_path):
    store = Store(tmp_path)
    guard.check(LlamaConfig(**TINY), store)
    guard.check(LlamaConfig(**{**TINY, "num_key_value_heads": 4}), store)
    guard.check(LlamaConfig(**{**TINY, "hidden_size": 128, "num_hidden_layers": 9}), store)
    assert len(list(tmp_path.glob("guard/*/forward.json"))) == 2


STATE = {"lfm2": "conv", "mamba": "linear_attention", "jamba": "mamba", "qwen3_next": "linear_attention"}
STATE |= {"falcon_h1": "hybrid", "bamba": "", "zamba": "hybrid", "granitemoehybrid": "linear", "rwkv": "recurrent"}
STATE |= {"minimax": "linear_attention", "recurrent_gemma": "recurrent", "kimi_linear": "linear_attention"}


@pytest.mark.parametrize("name", STATE)
def test_layers_that_carry_state_are_refused_from_the_config_alone(name, tmp_path):
    with pytest.raises(
        UserError, match=f"ForCausalLM: its .*{STATE[name]}.* pass state from token to token"
    ) as refused:
        guard.check(architectures.config_of(name), Store(tmp_path))
    assert "\n" not in str(refused.value) and not (tmp_path / "guard").exists(), "nothing was run"


@pytest.mark.parametrize("name", ["falcon", "stablelm", "gptj", "bloom", "mpt"])
def test_attention_that_cannot_be_replaced_is_refused_by_class(name, tmp_path):
    with pytest.raises(UserError, match="ForCausalLM: its attention does not go through transformers'"):
        guard.check(architectures.config_of(name), Store(tmp_path))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("llama4_text", trial.PACKED),  # temperature by place in the tensor
        ("doge", trial.PACKED),  # a bias that the model makes itself
        ("deepseek_v32", trial.PACKED),  # a choice of keys that the model makes itself
        ("bert", trial.PACKED),  # sees what comes after
    ],
)
def test_masks_of_a_model_s_own_are_refused_by_trial(name, part, tmp_path):
    config = AutoConfig.for_model(*architectures.VARIANTS.get(name, (name, {}))[:1], num_hidden_layers=4)
    with pytest.raises(UserError, match=rf"\(layers: .*\): {part} (differ|cannot)"):
        guard.check(config, Store(tmp_path), [part])


def test_what_a_run_does_not_need_is_not_held_against_the_model(tmp_path):
    config = AutoConfig.for_model("ctrl")  # its positions behind a prompt are wrong
    guard.check(config, Store(tmp_path), [trial.PACKED, trial.GENERATION])
    with pytest.raises(UserError, match="rows behind prompts differ .* recovery=none or lora"):
        guard.check(config, Store(tmp_path), [trial.PROMPTED])


@pytest.mark.parametrize("processes", ["null", "2"])
@pytest.mark.parametrize(
    "architecture",
    [
        ["model_type=lfm2", "+layer_types=[conv,full_attention]"],
        ["model_type=falcon"],
    ],
)
def test_a_run_refuses_in_one_line_before_anything_is_loaded(architecture, processes, run_here, tmp_path):
    overrides = ["model=tiny_llama", f"evaluation.processes={processes}"]
    for value in architecture:
        overrides.append(f"+model.architecture.{value[1:]}" if value[0] == "+" else f"model.architecture.{value}")
    with pytest.raises(UserError, match="(Lfm2|Falcon)ForCausalLM: its ") as refused:
        run_here(*overrides, "task=arc_easy", "budget=smoke", "tracker=none", f"store={tmp_path / 'store'}")
    assert "\n" not in str(refused.value) and not (tmp_path / "store" / "load").exists()


def test_the_trial_takes_seconds():
    for name in ("llama", "gemma3_text", "mixtral"):
        started = time.perf_counter()
        assert all(value is None for value in guard.answers(architectures.config_of(name)).values())
        print(f"{name}: {time.perf_counter() - started:.1f} s")
        assert time.perf_counter() - started < 60


# The table in docs/models.md.


def test_the_table_has_a_line_for_every_architecture():
    assert list(architectures.table()) == architectures.names()


def test_the_table_s_refusals_by_class_are_those_of_today():
    table = architectures.table()
    for name in architectures.names():
        try:
            known = guard.refused_by_class(architectures.config_of(name))
        except Exception:
            continue
        assert ("| refused | refused | refused | refused |" in table[name] and "trial" not in table[name]) or not known
        if known is not None:
            assert table[name] == architectures.row(name)


SOME = ["llama", "gpt2", "opt", "qwen2", "phi", "gemma2", "mixtral", "deepseek_v3", "gpt_oss", "cohere2", "olmo2"]
SOME += ["phi3, LongRoPE", "llama, dynamic RoPE", "llama, YaRN", "doge", "diffllama", "llama4_text", "bert"]


@pytest.mark.parametrize("name", SOME)
def test_the_table_says_what_comes_out(name):
    assert architectures.table()[name] == architectures.row(name)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_the_whole_table_says_what_comes_out(part):
    table = architectures.table()
    others = [name for name in architectures.names() if name not in SOME][part::4]
    assert [name for name in others if table[name] != architectures.row(name)] == []
