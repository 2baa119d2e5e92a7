"""Mistakes in a run's command line, and what each is answered: the name that was meant, in one line."""

import pytest

from idp.composed import configs
from idp.errors import UserError
from idp.usage import explain

MISTAKES = [
    ("selector=random", "did you mean recovery/selector="),
    ("recovery.selector=random", "write recovery/selector=random"),
    ("recovery.bank=cluster", "write recovery/bank=cluster"),
    ("recovery.training=weights", "write recovery/training=weights"),
    ("recovery.search=none", "write recovery/search=none"),
    ("bank=cluster", "did you mean recovery/bank="),
    ("fit=heldout", "did you mean recovery/fit="),
    ("storage=plain", "did you mean recovery/storage="),
    ("calibration=budget", "did you mean compressor/calibration="),
    ("length=10", "recovery.length (with recovery="),
    ("lengths=[10]", "recovery.lengths (with recovery="),
    ("documents=10", "task.documents"),
    ("limit=10", "task.documents"),
    ("lr=0.1", "recovery.training.learning_rate"),
    ("learning_rate=0.1", "recovery.training.learning_rate"),
    ("steps=10", "recovery.training.steps"),
    ("epochs=10", "recovery.training.steps"),
    ("rank=4", "recovery.rank (with recovery="),
    ("bits=4", "compressor.quantization.bits"),
    ("wbits=4", "compressor.quantization.bits"),
    ("group_size=64", "did you mean compressor.quantization.group_size?"),
    ("compressor.group_size=64", "did you mean compressor.quantization.group_size?"),
    ("groupsize=64", "compressor.quantization.group_size"),
    ("level=0.5", "compressor.sparsity.level"),
    ("fewshot=2", "task.fewshot"),
    ("num_fewshot=2", "task.fewshot"),
    ("batch_tokens=9", "evaluation.batch_tokens"),
    ("perplexity=[]", "evaluation.perplexity"),
    ("device_map=auto", "model.device_map"),
    ("dtype=float32", "model.dtype"),
    ("recovery.steps=10", "recovery.training.steps"),
    ("recovery.rank=4", "it is an option of recovery=lora"),
    ("recovery.length=4", "it is an option of recovery="),
    ("recovery=prompt recovery.lenght=4", "recovery.length"),
    ("recovery=lora recovery.ranks=4", "recovery.rank"),
    ("recovery=prompt recovery.training.step=4", "recovery.training.steps"),
    ("recovery=prompt recovery.lr=4", "recovery.training.learning_rate"),
    ("model.dtyp=float32", "model.dtype"),
    ("evaluation.fidelty=false", "evaluation.fidelity"),
    ("baseline=false", "baselines"),
    ("sed=3", "seed"),
    ("ouput=here", "output"),
    ("recovery=IDP", "did you mean recovery=idp?"),
    ("recovery=low-rank", "did you mean recovery=lowrank?"),
    ("recovery=LoRA", "did you mean recovery=lora?"),
    ("task=arc-easy", "did you mean task=arc_easy?"),
    ("task=ARC_Easy", "did you mean task=arc_easy?"),
    ("task=boolq", "task=custom task.names=[boolq]"),
    ("compressor=gptq-4", "did you mean compressor=gptq4?"),
    ("compressor=sparse_gpt50", "did you mean compressor=sparsegpt50?"),
    ("compressor=wanda", "did you mean compressor=wanda50?"),
    ("model=llama2-7b", "did you mean model=llama2_7b?"),
    ("budget=papr", "did you mean budget=paper?"),
    ("tracker=wanb", "did you mean tracker=wandb?"),
    ("experiment=recoverys", "did you mean experiment=recoveries?"),
    ("hydra/launcher=slrum", "did you mean hydra/launcher=slurm?"),
    ("recovery=idp recovery/selector=atention", "did you mean recovery/selector=attention?"),
    ("seed=-1", "seed=-1: must be from 0"),
    ("modle=tiny_llama", "did you mean model="),
]


def answer(words, sweep=False):
    with pytest.raises(Exception) as caught:
        list(configs(words, sweep=sweep))
    return str(caught.value) if isinstance(caught.value, UserError) else explain(caught.value)


@pytest.mark.parametrize(("command", "said"), MISTAKES)
def test_a_mistake_is_answered_by_what_was_meant(command, said):
    found = answer(command.split())
    assert said in found and "\n" not in found


def test_an_experiment_needs_no_plus():
    assert list(configs(["experiment=demo"])) == list(configs(["+experiment=demo"]))
