"""A teacher that is brought to the device layer by layer says what a resident one says."""

from __future__ import annotations

import pytest
import torch

from idp import memory
from idp.config import Model
from idp.models import LoadedModel
from idp.recover import teacher as teachers
from idp.recover.saving import STREAMED, Saving

from .test_training import options


def device_bytes(model):
    return sum(tensor.untyped_storage().nbytes() for tensor in model.parameters() if tensor.device.type == "meta")


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
def test_its_logits_are_the_same_bits_and_its_weights_stay(family, open_tiny):
    model = open_tiny(family).model
    tokens = torch.randint(1, 250, (2, 24), generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        teachers.stream(model, torch.device("cpu"))
        assert torch.equal(model(input_ids=tokens, use_cache=False).logits, expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_one_layer_at_a_time_is_on_the_device():
    from idp.plan.meta import Peak
    from idp.plan.peaks import TrainingStep, _opened

    with Peak() as counted:
        with counted.elsewhere():
            teacher = _opened(TrainingStep("llama32_1b", "prompt", layers=4))
        teachers.stream(teacher.model, teacher.device)
        layer = sum(tensor.nbytes for tensor in teacher.model.model.layers[0].parameters())
        with torch.no_grad():
            teacher.model.model(input_ids=torch.zeros(1, 8, dtype=torch.long, device="meta"), use_cache=False)
    assert layer <= counted.peak < 1.1 * layer


def test_equal_weights_outside_the_layers_are_the_student_s_own(open_tiny):
    teacher, student = open_tiny("qwen2").model, open_tiny("qwen2").model
    with torch.no_grad():
        student.lm_head.weight[0, 0] += 1.0
    teachers.share(teacher, student)
    embeddings = [model.get_input_embeddings().weight for model in (teacher, student)]
    assert embeddings[0].data_ptr() == embeddings[1].data_ptr()
    assert teacher.lm_head.weight.data_ptr() != student.lm_head.weight.data_ptr()
    assert (
        teacher.model.layers[0].mlp.up_proj.weight.data_ptr() != student.model.layers[0].mlp.up_proj.weight.data_ptr()
    )


def config(**changes):
    values = ("t", "local", None, None, "float32", "cpu", None, False, {})
    found = Model(*values)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


PLACES = [
    ("auto", 10**12, False),
    ("auto", 1000, True),
    ("auto", None, False),
    ("streamed", 10**12, True),
    ("resident", 0, False),
]


@pytest.mark.parametrize(("wanted", "free", "streamed"), PLACES)
def test_where_it_is_follows_from_the_option_and_the_free_memory(
    wanted, free, streamed, open_tiny, model_folders, monkeypatch
):
    """The student stands on a device without numbers: what comes to it from main memory loses them."""
    student = open_tiny("llama")
    student = LoadedModel(student.model.to("meta"), student.tokenizer)
    monkeypatch.setattr(memory, "device_memory", lambda device: None if free is None else (free, free))
    training = options(objective="distill", teacher=wanted)
    found = teachers.open_teacher(model_folders("llama"), config(), training, student)
    assert hasattr(found.model, teachers.STREAMED) == streamed
    layers = {parameter.device.type for parameter in found.model.model.layers.parameters()}
    assert layers == {"cpu"}
    if streamed:
        assert found.model.get_input_embeddings().weight.device.type == "meta"


def test_it_is_streamed_once_memory_has_run_out(open_tiny, monkeypatch):
    student, teacher = open_tiny("llama"), open_tiny("llama")
    saving = Saving(options(objective="distill"), student.model, teacher)
    assert [saving.spare(), saving.spare()] == ["checkpointing", None]  # on a CPU it is in main memory already
    monkeypatch.setattr(teachers, "can_be_streamed", lambda loaded: not hasattr(loaded.model, teachers.STREAMED))
    assert [saving.spare(), saving.spare()] == [STREAMED, None]
    saving = Saving(options(objective="distill", teacher="resident", checkpointing=False), student.model, teacher)
    assert saving.spare() is None


def test_what_a_streamed_one_says_of_heldout_text_is_kept(open_tiny):
    from idp.recover.objective import Objective

    student, teacher = open_tiny("llama"), open_tiny("llama")
    with torch.no_grad():
        teacher.model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    batches = torch.randint(1, 250, (3, 2, 24), generator=torch.Generator().manual_seed(1))

    def losses(objective):
        inputs = [{"input_ids": batch, "use_cache": False} for batch in batches]
        return [objective(student.model, *both).item() for both in zip(batches, inputs, strict=True)]

    with torch.no_grad():
        expected = losses(Objective(options(objective="distill"), student, teacher))
    teachers.stream(teacher.model, torch.device("cpu"))
    objective, passes = Objective(options(objective="distill"), student, teacher), []
    teacher.model.model.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        assert losses(objective) == losses(objective) == expected
    assert len(passes) == len(batches)
    assert losses(objective) == expected and len(passes) == 2 * len(batches)  # with gradients nothing is kept
