"""What is kept of the dense model's predictions teaches what the dense model itself would."""

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from idp import models
from idp.errors import UserError
from idp.evaluate.divergence import DRAWN, cut
from idp.recover import cached, stage
from idp.recover.cached import CachedTeacher
from idp.recover.nets.head_loss import distill, distill_kept
from idp.recover.objective import Objective
from idp.store import Store

from .test_training import options

WHOLE = 10**4  # more than the tiny vocabulary holds: nothing is left out


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept(teacher, temperature, top, seed=0):
    offsets = torch.rand(len(teacher), generator=torch.Generator().manual_seed(seed))
    found = cut(log_softmax(teacher / temperature, dim=-1), offsets, top, DRAWN)
    return lambda places: tuple(each[places] for each in found)


@pytest.fixture
def peaked():
    """Logits of a teacher, most of whose probability is on few of 5,000 tokens, and of a student that is damaged."""
    teacher = noise(600, 5000) * 3.5
    return teacher, teacher + noise(600, 5000, seed=2) * 0.5


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_the_loss_is_the_whole_one_and_that_of_one_class_for_the_rest_is_not(temperature, peaked):
    """Within 1e-3 nats per token, as a mean over as many places as one batch has."""
    teacher, student = peaked
    places = slice(0, len(student))
    expected, _ = distill(lambda places: teacher[places], temperature)(student, places, False)
    assert 0.05 < expected / len(student) < 1.0
    found, _ = distill_kept(kept(teacher, temperature, 64), 64, temperature)(student, places, False)
    assert (found - expected).abs() / len(student) < 1e-3
    ids, given, rest = kept(teacher, temperature, 64)(places)
    ours = log_softmax(student / temperature, dim=-1).gather(1, ids[:, :64])
    others = torch.log1p(-ours.exp().sum(1))
    coarse = (given[:, :64].exp() * (given[:, :64] - ours)).sum(1) + rest.exp() * (rest - others)
    assert (expected - coarse.sum() * temperature**2) / len(student) > 5e-3


def test_its_gradient_is_that_of_the_plain_formula_and_on_average_the_whole_one_s(peaked):
    teacher, student = (logits[:8, :300] for logits in peaked)
    top, places, temperature = 16, slice(0, 8), 1.5
    taught = kept(teacher, temperature, top)
    _, slope = distill_kept(taught, top, temperature)(student, places, True)

    ids, given, rest = taught(places)
    leaf = student.double().requires_grad_()
    ours = log_softmax(leaf / temperature, dim=-1)
    others = ours.exp().scatter(1, ids[:, :top], 0.0).sum(1)
    loss = (given[:, :top].exp() * (given[:, :top] - ours.gather(1, ids[:, :top]))).sum(1)
    loss = loss + rest.exp() * (rest - others.log())
    ratio = (ours.gather(1, ids[:, top:]).exp() / others[:, None]) / (given[:, top:] - rest[:, None]).exp()
    loss = loss + rest.exp() * (ratio - 1 - ratio.log()).mean(1)
    (loss.sum() * temperature**2).backward()
    torch.testing.assert_close(slope, leaf.grad.float(), atol=1e-5, rtol=1e-3)

    _, whole = distill(lambda places: teacher[places], temperature)(student, places, True)
    slopes = [
        distill_kept(kept(teacher, temperature, top, n), top, temperature)(student, places, True)[1] for n in range(300)
    ]
    assert (torch.stack(slopes).mean(0) - whole).norm() < 0.03 * whole.norm()
    assert (slopes[0] - whole).norm() > 0.03 * whole.norm()


def test_where_both_are_equal_it_is_zero_and_so_is_its_gradient(peaked):
    teacher = peaked[0][:20]
    summed, slope = distill_kept(kept(teacher, 1.0, 64), 64, 1.0)(teacher, slice(0, 20), True)
    assert summed.abs() < 1e-4 and slope.abs().max() < 1e-5


def blocks(count=6, length=24):
    return torch.randint(1, 250, (count, length), generator=torch.Generator().manual_seed(1))


def damaged(opened, family):
    loaded = opened(family)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0).add_(noise(*parameter.shape) * 0.02)
    return loaded


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "gemma3_text"])
def test_with_all_tokens_kept_it_is_the_resident_teacher(family, open_tiny, bos_folders, tmp_path):
    """But for what float16 rounds; behind a BOS too."""
    student, teacher = open_tiny(family), damaged(open_tiny, family)
    teacher.bos = (7,)
    text = blocks()
    training = options(objective="distill", teacher="cached", teacher_top=WHOLE, temperature=2.0, lm_weight=0.3)
    cached.write(teacher, text, training, tmp_path)
    found, expected = (
        [
            Objective(training, student, each)(student.model, rows, {"input_ids": rows, "use_cache": False}).item()
            for rows in (text[:2], text[[4, 1, 5]])
        ]
        for each in (CachedTeacher([tmp_path]), teacher)
    )
    assert found == pytest.approx(expected, abs=1e-4)
    untaught = Objective(options(), student, None)(student.model, text[:2], {"input_ids": text[:2], "use_cache": False})
    assert abs(untaught.item() - expected[0]) > 0.01


def test_what_is_kept_is_what_the_model_says(open_tiny, tmp_path):
    teacher, text = damaged(open_tiny, "llama"), blocks()
    cached.write(teacher, text, options(objective="distill", teacher="cached", teacher_top=16), tmp_path)
    ids, logs, rest = CachedTeacher([tmp_path])(text[2:4], torch.device("cpu"))
    with torch.no_grad():
        expected = teacher.model(text[2:4]).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    assert ids.shape == logs.shape == (46, 16 + DRAWN) and rest.shape == (46,)
    torch.testing.assert_close(logs, expected.gather(1, ids), atol=5e-3, rtol=1e-3)
    assert torch.equal(ids[:, :16], expected.topk(16).indices.sort(1).values)
    torch.testing.assert_close(logs[:, :16].exp().sum(1) + rest.exp(), torch.ones(46), atol=1e-3, rtol=0)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert 0.9 < size / (text.numel() * cached.token_bytes(16, len(teacher.tokenizer))) < 1.05


def test_a_killed_one_goes_on_and_other_text_is_refused(open_tiny, tmp_path, monkeypatch):
    teacher, text = open_tiny("llama"), blocks(7)
    training = options(objective="distill", teacher="cached", teacher_top=16)
    monkeypatch.setattr(cached, "FILE_TOKENS", 48)
    cached.write(teacher, text, training, tmp_path / "whole")
    writes, write = [], cached.write_tensors

    def killed(file, tensors):
        if len(writes) == 2:
            raise KeyboardInterrupt
        writes.append(file.name)
        return write(file, tensors)

    monkeypatch.setattr(cached, "write_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        cached.write(teacher, text, training, tmp_path / "killed")
    (tmp_path / "killed" / "checkpoint" / writes[1]).write_bytes(b"cut")
    monkeypatch.setattr(cached, "write_tensors", lambda file, tensors: writes.append(file.name) or write(file, tensors))
    cached.write(teacher, text, training, tmp_path / "killed")
    names = [f"blocks-{number:05}.safetensors" for number in range(4)]
    assert writes == [*names[:2], *names[1:]]
    both = [[(tmp_path / each / name).read_bytes() for name in names] for each in ("whole", "killed")]
    assert both[0] == both[1]
    with pytest.raises(ValueError, match="text that is not that of the training"):
        CachedTeacher([tmp_path / "whole"])(text[:1] + 1, torch.device("cpu"))


def test_another_vocabulary_is_refused(open_tiny, tmp_path):
    training = options(objective="distill", teacher="cached")
    teacher, student = open_tiny("llama"), open_tiny("llama")
    cached.write(teacher, blocks(), training, tmp_path)
    student.model.resize_token_embeddings(300)
    with pytest.raises(UserError, match=r"has a vocabulary of 300, the dense one \d+; use objective=lm"):
        Objective(training, student, CachedTeacher([tmp_path]))


CACHED = ["recovery.training.objective=distill", "recovery.training.teacher=cached"]


def test_repairs_and_seeds_share_it(small, text, tmp_path, monkeypatch):
    root, opened, found = Store(tmp_path / "store"), [], []
    config = small("prompt", *CACHED)
    dense = models.load(config.model, models.find_model(config.model), root)
    own = models.open_model
    monkeypatch.setattr(cached.models, "open_model", lambda *given: opened.append(1) or own(*given))
    for method, seed, more in (
        ("prompt", 0, []),
        ("lora", 0, []),
        ("prompt", 1, []),
        ("prompt", 0, ["recovery.length=4"]),
    ):
        config = small(method, *CACHED, *more)
        repair = stage.recover(config.recovery, config.model, dense, text, seed, root, dense=dense)
        found.append(repair)
        history = next(iter(repair.read("history.json").values()))
        if method == "lora":  # which changes nothing at first
            assert history["heldout"][0]["loss"] < 1e-3, "the dense model itself is repaired: it says what it says"
    # A dense model for what is kept, and for each repair the model that is repaired.
    assert len(opened) == 1 + len(found)
    assert len({repair.key for repair in found}) == 4
    assert len(list((root.root / "teacher").iterdir())) == 2
    ahead = stage.taught_identities(config.recovery, config.model, dense.key, models.model_folder(dense), text)
    assert {identity.key for identity in ahead} == {place.name for place in (root.root / "teacher").iterdir()}


def test_keys(compose):
    def key(*words):
        return compose("recovery=prompt", *words).recovery.options()["training"]

    plain = key("recovery.training.objective=distill")
    assert not {"teacher", "teacher_top"} & set(plain)
    assert key("recovery.training.objective=distill", "recovery.training.teacher_top=9") == plain
    assert key(*CACHED) == plain | {"teacher": "cached"}
    assert key(*CACHED, "recovery.training.teacher_top=9") == plain | {"teacher": "cached", "teacher_top": 9}
    assert key("recovery.training.teacher=cached") == key()


def test_of_equal_seeds_the_text_is_another_only_where_it_is_not_cached(small, text, open_tiny):
    tokenizer = open_tiny("llama").tokenizer
    for words, same in ((CACHED, True), (CACHED[:1], False)):
        training = small("prompt", *words).recovery.training
        one, other = (cached.blocks_of(training, text, tokenizer, seed) for seed in (0, 1))
        assert torch.equal(one["train"], other["train"]) == same and torch.equal(one["heldout"], other["heldout"])


def test_kl_is_torch_s(peaked):
    teacher, student = (logits[:, :200] for logits in peaked)
    found, _ = distill_kept(kept(teacher, 1.0, 200), 200, 1.0)(student, slice(0, 600), False)
    expected = kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
    assert found == pytest.approx(expected.item(), rel=1e-5)
