"""The search tries every candidate, trains the best in full, says what it saw, and continues after a kill."""

import pytest

from idp.errors import UserError
from idp.recover import search
from idp.recover.training import Diverged

CANDIDATES = ["recovery.search.learning_rates=[1e-5,5e-2]", "recovery.search.steps=4"]


@pytest.mark.parametrize("method", ["prompt", "prefix-mlp", "idp", "lora", "lora_idp"])
def test_the_best_candidate_is_trained(method, recovered):
    inits = [] if method == "lora" else ["recovery.search.inits=[vocabulary,random]"]
    _, _, repair = recovered(method, *CANDIDATES, *inits)
    found = repair.read("search.json")["lora" if method == "lora" else "prompt"]
    assert len(found["candidates"]) == (2 if method == "lora" else 4) and found["steps"] == 4
    best = min(found["candidates"], key=lambda candidate: candidate["heldout_loss"])
    assert found["chosen"] == {name: best[name] for name in found["chosen"]}
    assert len({candidate["heldout_loss"] for candidate in found["candidates"]}) > 1
    plain = [f"recovery.training.learning_rate={best['learning_rate']}"]
    plain += [] if method == "lora" else [f"recovery.init={best['init']}"]
    _, _, directly = recovered(method, *plain)
    assert directly.key != repair.key and not directly.reused
    assert directly.read("history.json") == repair.read("history.json"), "the search changed the training behind it"


def test_what_is_searched_for_is_no_part_of_the_key(recovered):
    _, _, one = recovered("prompt", *CANDIDATES)
    _, _, other = recovered("prompt", *CANDIDATES, "recovery.training.learning_rate=0.3")
    assert other.key == one.key


def test_a_killed_search_continues(recovered, monkeypatch):
    from idp.recover import training

    class Killed(Exception):
        pass

    _, _, expected = recovered("prompt", *CANDIDATES, store="undisturbed")
    steps, plain = [], training.schedule

    def kill(step, *rest):
        steps.append(step)
        if len(steps) == 7:  # in the third step of the second candidate
            raise Killed
        return plain(step, *rest)

    monkeypatch.setattr(training, "schedule", kill)
    with pytest.raises(Killed):
        recovered("prompt", *CANDIDATES, store="killed")
    _, _, found = recovered("prompt", *CANDIDATES, store="killed")
    assert len(steps) == 7 + 2 + 6  # of the second candidate what its checkpoint lacks, then the training itself
    for file in ("search.json", "history.json", "bank/prompt_0/adapter_model.safetensors"):
        assert found.manifest["files"][file] == expected.manifest["files"][file]


def test_a_candidate_that_diverges_loses(small, tmp_path):
    recovery = small("prompt", *CANDIDATES).recovery

    def train(candidate, place, label):
        from idp.recover.training import History

        if candidate.training.learning_rate > 1e-3:
            raise Diverged("the loss is nan at step 2")
        return History(heldout=[{"step": 0, "loss": 5.0}], best_loss=4.0)

    chosen, found = search.search(recovery, train, tmp_path)
    assert chosen.training.learning_rate == 1e-5 and found["candidates"][1]["heldout_loss"] is None
    recovery.search.learning_rates = [0.1]
    with pytest.raises(UserError, match="the loss of every candidate stopped being a number.*nan at step 2"):
        search.search(recovery, train, tmp_path)


def test_it_is_in_the_record(run_here):
    tiny = ("model=tiny_llama", "budget=smoke", "tracker=none", "task=arc_easy", "evaluation.perplexity=[]")
    record = run_here(*tiny, "recovery=prompt", "recovery.length=4", "recovery.search.inits=[vocabulary,text]")
    found = record["idp"]["search"]["prompt"]
    assert [candidate["init"] for candidate in found["candidates"]] == ["vocabulary", "text"]
    assert found["chosen"]["init"] in ("vocabulary", "text") and found["steps"] == 3
