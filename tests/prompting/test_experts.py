"""Low-rank experts per row equal each row alone on a model with its expert merged into the weights."""

import copy
from dataclasses import replace

import pytest
import torch

from idp.errors import UserError
from idp.evaluate.batching import Request, make_row
from idp.evaluate.engine import LocalEngine
from idp.evaluate.generation import decode, prefill
from idp.evaluate.graph import FixedDecoding
from idp.prompting import experts
from idp.prompting.bank import PromptBank
from idp.prompting.experts import layers_of
from idp.prompting.following import following
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.base import Selector
from idp.prompting.variants import Attached

RANK, EXPERTS = 3, 3
CONTEXTS = [[3, 40, 41, 42, 43], [4, 50], [5, *range(60, 100)], [6, 70, 71], [7, 8, 9, 10, 11]]
FAMILIES = ["llama", "opt", "gemma3_text"]


class ByFirstToken(Selector):
    """Picks expert `first token mod m`."""

    def scores(self, contexts):
        m = len(self.prefixes.lengths)
        return torch.nn.functional.one_hot(torch.tensor([context[0] % m for context in contexts]), m).float()


def drawn(loaded, seed=0):
    """Updates of every linear layer but the head, large enough to change every token."""
    draw, found = torch.Generator().manual_seed(seed), []
    head = loaded.model.get_output_embeddings()
    layers = {
        name: layer
        for name, layer in loaded.model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    }
    for _ in range(EXPERTS):
        found.append(
            {
                name: (
                    torch.randn(RANK, layer.in_features, generator=draw) / layer.in_features**0.5,
                    torch.randn(layer.out_features, RANK, generator=draw) * 0.3,
                )
                for name, layer in layers.items()
            }
        )
    return found


def merged(loaded, updates):
    """A copy of the model with W + B A in every layer's place."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        for name, (a, b) in updates.items():
            model.get_submodule(name).weight += b @ a
    return replace(loaded, model=model)


@pytest.fixture(params=FAMILIES)
def both(request, open_tiny):
    """The model with experts, each row's own; and for each expert the model that it is merged into."""
    loaded = open_tiny(request.param)
    updates = drawn(loaded)
    alone = [merged(loaded, each) for each in updates]
    with_experts = replace(loaded, model=copy.deepcopy(loaded.model))
    experts.attach(with_experts.model, updates)
    return repaired(with_experts), alone


def repaired(loaded, count=EXPERTS):
    width = loaded.model.get_input_embeddings().weight.shape[1]
    bank = PromptBank([torch.zeros(0, width)] * count, [f"expert_{number}" for number in range(count)])
    return RepairedModel(loaded, bank, ByFirstToken())


def rows():
    """A trunk and two branches each, and rows that are nothing but a branch."""
    found = []
    for number, context in enumerate(CONTEXTS):
        requests = [Request(context, [20 + number, 30]), Request(context, [21, 31, 41])]
        found.append(make_row(requests, [0, 1], context))
    return found


def close(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def plain_scores(model, beginning, row_context, continuation):
    tokens = [*beginning, *row_context, *continuation]
    logs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    first = len(tokens) - len(continuation)
    return [float(logs[place - 1, tokens[place]]) for place in range(first, len(tokens))]


@pytest.mark.parametrize("beginning", [[], [12, 13, 14, 15]])
def test_packed_scores_are_those_of_each_row_s_expert_merged(beginning, both):
    mixed, alone = both
    # What a selector reads begins with what all share: its first token would choose for all of them.
    mixed.selector.scores = lambda contexts: ByFirstToken.scores(
        mixed.selector, [context[len(beginning) :] for context in contexts]
    )
    found = LocalEngine(mixed).score_batch(rows(), beginning)
    assert found["choice"] == [context[0] % EXPERTS for context in CONTEXTS] and len(set(found["choice"])) == EXPERTS
    expected = []
    for number, context in enumerate(CONTEXTS):
        model = alone[context[0] % EXPERTS].model
        for continuation in ([20 + number, 30], [21, 31, 41]):
            expected += plain_scores(model, beginning, context, continuation)
    close(found["values"], expected)
    others = plain_scores(alone[1].model, beginning, CONTEXTS[0], [20, 30])
    assert max(abs(a - b) for a, b in zip(found["values"], others, strict=False)) > 1e-2  # the experts matter


def test_generations_are_those_of_each_row_s_expert_merged(both):
    """Rows end at different places, and others go on behind the experts that are theirs."""
    mixed, alone = both
    choice = mixed.choose(CONTEXTS)
    ends = [6, 3, 5, 2, 4]
    tokens = [RepairedModel(alone[prompt]) for prompt in choice.tolist()]
    for longest in set(ends):
        found, _ = decode(mixed, CONTEXTS, choice, [], longest)
        expected = [
            decode(model, [context], None, [], longest)[0][0] for model, context in zip(tokens, CONTEXTS, strict=True)
        ]
        assert found == expected
    stops = [text[:2] for text in expected[:2] if text]  # some rows leave the batch early
    found, _ = decode(mixed, CONTEXTS, choice, stops, 8)
    assert found == [
        decode(model, [context], None, stops, 8)[0][0] for model, context in zip(tokens, CONTEXTS, strict=True)
    ]


def test_fixed_buffers_carry_the_experts(both):
    mixed, alone = both
    tokens = torch.tensor([CONTEXTS[0], CONTEXTS[4]])
    choice = mixed.choose(tokens.tolist())
    with torch.inference_mode():
        fixed = FixedDecoding(mixed, prefill(mixed, tokens, None, choice), 3)
        for _ in range(3):
            fixed.step()
        for row, prompt in enumerate(choice.tolist()):
            model = RepairedModel(alone[prompt])
            own = FixedDecoding(model, prefill(model, tokens[row : row + 1], None, None), 3)
            for _ in range(3):
                own.step()
            close(fixed.logits[row], own.logits[0])


def test_without_a_choice_the_layers_are_the_model_s_own(both, open_tiny):
    mixed, _ = both
    family = {"LlamaForCausalLM": "llama", "OPTForCausalLM": "opt"}.get(type(mixed.model).__name__, "gemma3_text")
    tokens = torch.tensor([CONTEXTS[0]])
    with torch.no_grad():
        found, expected = mixed.model(input_ids=tokens).logits, open_tiny(family).model(input_ids=tokens).logits
    assert torch.equal(found, expected)


def test_a_mixture_is_the_weighed_sum_of_the_updates(open_tiny):
    loaded = open_tiny("llama")
    updates, weights = drawn(loaded), torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    model = copy.deepcopy(loaded.model)
    experts.attach(model, updates)
    tokens = torch.tensor([CONTEXTS[0], CONTEXTS[4]])
    with torch.no_grad(), following(weights):
        found = model(input_ids=tokens).logits
    for row, mixture in enumerate(weights.tolist()):
        together = copy.deepcopy(loaded.model)
        with torch.no_grad():
            for part, each in zip(mixture, updates, strict=True):
                for name, (a, b) in each.items():
                    together.get_submodule(name).weight += part * (b @ a)
            close(found[row], together(input_ids=tokens[row : row + 1]).logits[0])


def test_they_are_taken_off_and_put_back(open_tiny):
    """As latency does with a repair on the weights that it shares with the model without."""
    loaded = open_tiny("llama")
    model, tokens = copy.deepcopy(loaded.model), torch.tensor([CONTEXTS[0]])
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        with Attached(model) as attached:
            experts.attach(model, drawn(loaded))
        mixed = repaired(replace(loaded, model=model))
        with_them = prefill(mixed, tokens, None, mixed.choose(tokens.tolist())).logits
        attached.put(False)
        assert not layers_of(model) and torch.equal(model(input_ids=tokens).logits, before)
        attached.put(True)
        again = prefill(mixed, tokens, None, mixed.choose(tokens.tolist())).logits
        assert torch.equal(again, with_them) and not torch.allclose(with_them, before[:, -1])


def test_what_belongs_to_another_repair_or_model_is_refused(open_tiny):
    loaded = open_tiny("llama")
    model = copy.deepcopy(loaded.model)
    updates = drawn(loaded)
    experts.attach(model, updates)
    with pytest.raises(UserError, match="a bank of 2 for a model with 3 experts"):
        repaired(replace(loaded, model=model), 2)
    name, (a, b) = next(iter(updates[0].items()))
    with pytest.raises(UserError, match="they belong to another model"):
        experts.attach(copy.deepcopy(loaded.model), [{name: (a[:, 1:], b)}])
    with pytest.raises(UserError, match="no such layer"):
        experts.attach(copy.deepcopy(loaded.model), [{"model.nowhere": (a, b)}])


@pytest.mark.parametrize("layer", [0, 1])
def test_arrow_reads_the_inputs_of_its_layer(layer, open_tiny):
    """Against singular vectors of the whole updates and hooks on each row alone."""
    from idp.prompting.selectors.arrow import Arrow

    loaded, seen = open_tiny("llama"), {}
    updates = drawn(loaded)
    model = copy.deepcopy(loaded.model)
    experts.attach(model, updates)
    mixed = repaired(replace(loaded, model=model))
    selector = Arrow(layer)
    selector.bind(model, mixed.prefixes)
    with torch.no_grad():
        found = selector.scores(CONTEXTS)
    for name in updates[0]:
        if name.split(".")[2] == str(layer):
            loaded.model.get_submodule(name).register_forward_pre_hook(
                lambda _, arguments, name=name: seen.__setitem__(name, arguments[0][0])
            )
    for row, context in enumerate(CONTEXTS):
        with torch.no_grad():
            loaded.model(input_ids=torch.tensor([context]))
        assert len(seen) == 7
        for number, each in enumerate(updates):
            first = {name: torch.linalg.svd(each[name][1] @ each[name][0]).Vh[0] for name in seen}
            expected = sum((inputs @ first[name]).abs().mean() for name, inputs in seen.items()) / len(seen)
            close(found[row, number], expected)
    assert len(set(found.argmax(1).tolist())) > 1
