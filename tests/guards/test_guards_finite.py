"""Numbers that are not finite stop a run wherever a model is asked, with the layer and the dtype."""

import pytest
import torch

from idp.errors import UserError
from idp.evaluate.batching import Request, make_row
from idp.evaluate.engine import LocalEngine
from idp.evaluate.pool import PooledEngine
from idp.evaluate.scorer import Scorer
from idp.prompting.attention.group import TRUNK
from idp.prompting.attention.plain import attend_group
from idp.prompting.attention.weighing import Weighing
from idp.prompting.packing import pack
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.attention import Attention

ROWS = [make_row([Request([3, 40, 41], [42, 43])], [0], [3, 40, 41])]


def overflowing(open_tiny, dtype=torch.float16, layer=1):
    """A tiny Llama whose second layer overflows in float16, and in no other dtype."""
    loaded = open_tiny("llama")
    loaded.model.to(dtype)
    with torch.no_grad():
        loaded.model.model.layers[layer].mlp.up_proj.weight.fill_(300.0)
        loaded.model.model.layers[layer].mlp.down_proj.weight.fill_(300.0)
    return loaded


def opened_in_float16(folder, device):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from idp.models import LoadedModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).eval().requires_grad_(False)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(300.0)
        model.model.layers[1].mlp.down_proj.weight.fill_(300.0)
    return RepairedModel(LoadedModel(model, AutoTokenizer.from_pretrained(folder)))


WHERE = (
    r"LlamaForCausalLM in float16: .* not finite, first at model\.layers\.1\.mlp\.\w+ \(\w+\); use model.dtype=bfloat16"
)


def test_scoring_and_perplexity_stop(open_tiny):
    loaded = overflowing(open_tiny)
    engine = LocalEngine(RepairedModel(loaded))
    with pytest.raises(UserError, match=WHERE):
        engine.score_batch(ROWS, [])
    with pytest.raises(UserError, match=WHERE):
        Scorer(engine, 512).score_windows([Request([3], [40, 41, 42])])


def test_generation_stops(open_tiny):
    with pytest.raises(UserError, match=WHERE):
        LocalEngine(RepairedModel(overflowing(open_tiny))).generate_batch([[3, 40, 41], [5]], ["\n"], 4)


def test_other_dtypes_hold_it_and_go_on(open_tiny):
    for dtype in (torch.float32, torch.bfloat16):
        engine = LocalEngine(RepairedModel(overflowing(open_tiny, dtype)))
        assert all(value < 0 for value in engine.score_batch(ROWS, [])["values"])


def test_prompts_whose_keys_overflow_are_refused_when_they_are_bound(open_tiny, make_bank):
    loaded = overflowing(open_tiny, layer=0)
    with pytest.raises(UserError, match=r"a prompt's keys are not finite, first at (model\.)?layers\.0\.mlp"):
        RepairedModel(loaded, make_bank(loaded, [4]))


def test_the_choice_of_a_prompt_stops(open_tiny, make_bank):
    loaded = open_tiny("llama")
    repaired = RepairedModel(loaded, make_bank(loaded, [4, 6]), Attention())
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the selector's scores are not finite, .* weight model\.layers\.0"):
        repaired.choose([[3, 40, 41]])


def test_a_process_s_refusal_arrives_as_one_line(model_folders, open_tiny, spawned_forked):
    import functools

    loaded = open_tiny("llama")
    engine = PooledEngine(
        functools.partial(opened_in_float16, model_folders("llama")), ["cpu"], loaded.model.config, loaded.tokenizer
    )
    try:
        with pytest.raises(UserError, match=WHERE) as refused:
            list(engine.score([ROWS], []))
    finally:
        engine.close()
    assert "\n" not in str(refused.value) and "Traceback" not in str(refused.value)


def test_float16_scores_overflow_only_where_scaled_ones_do(open_tiny):
    """Products of 16 * 80 * 80 = 102,400 are beyond float16; scaled by 1 / 4 they are not."""
    model = open_tiny("llama").model
    packed = pack([[1] * 5], [range(5)], [[TRUNK] * 5], None, None, model, torch.device("cpu"))
    torch.manual_seed(0)
    query, key = torch.full((5, 4, 16), 80.0), torch.full((5, 2, 16), 80.0)
    value = torch.randn(5, 2, 16)
    half = [tensor.half() for tensor in (query, key, value)]
    found = attend_group(packed.groups[0], *half, None, Weighing(0.25))
    expected = attend_group(packed.groups[0], query, key, value, None, Weighing(0.25))
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)
