"""The sentence that closes a run claims what was measured, with its interval, and names what it leaves open."""

import re

from idp.records.conclusion import conclusion
from idp.records.differences import Change

from ..outcomes import hits, record

DENSE = {"arc_easy": hits(90, 120), "piqa": hits(80, 120)}
DAMAGED = {"arc_easy": hits(90, 120, 2, 30), "piqa": hits(80, 120, 2, 20)}


def said(tmp_path, models, **more):
    return record(tmp_path, models, **more)["idp"]["conclusion"]


def test_a_gain_that_is_decided(tmp_path):
    better = {"arc_easy": hits(90, 120, 6, 12), "piqa": hits(80, 120, 4, 6)}
    sentence = said(tmp_path, {"dense": DENSE, "compressed": DAMAGED, "repaired": better})
    assert re.fullmatch(
        r"gptq3 costs 19\.2 points \(13\.\d to 24\.\d\) of mean accuracy over 2 tasks;"
        r" prompt brings back \+15\.8 points \(\+\d+\.\d to \+\d+\.\d\), 83% \(\d+% to \d+%\) of the damage;"
        r" 240 documents would show a difference of \d\.\d points or more \(80 % power\);"
        r" one training seed, one draw of calibration text: the interval holds for these only\.",
        sentence,
    ), sentence


def test_what_came_back_on_text_shows_where_tasks_decide_nothing(tmp_path):
    little = {"arc_easy": hits(90, 120, 4, 31), "piqa": hits(80, 120, 4, 20)}
    windows = [3.0, 3.4, 3.2, 3.9]
    losses = {"dense": windows, "compressed": [each + 0.5 for each in windows], "repaired": [e + 0.3 for e in windows]}
    models = {"dense": DENSE, "compressed": DAMAGED, "repaired": little}
    found = record(tmp_path, models, texts={row: {"c4": each} for row, each in losses.items()})
    assert (
        "undecided; of the nats per token that compression took on text it brings back 40% (40% to 40%) on c4; "
        in (found["idp"]["conclusion"])
    )
    assert Change(found).of_text("c4") == ["+0.200 (+0.200 to +0.200) nats", "40% (40% to 40%)", "", "", ""]


def test_an_undecided_one_names_the_documents_that_would_decide_it(tmp_path):
    little = {"arc_easy": hits(90, 120, 4, 31), "piqa": hits(80, 120, 4, 20)}
    sentence = said(tmp_path, {"dense": DENSE, "compressed": DAMAGED, "repaired": little}, compressor="rtn3")
    assert "prompt brings back +1.2 points (-" in sentence and "): undecided; " in sentence
    assert re.search(
        r"if this one is real, about [\d,]+ would decide it; one training seed: the interval holds for that"
        r" seed only\.$",
        sentence,
    ), sentence


def test_what_was_drawn_once_is_named(tmp_path):
    models = {"dense": DENSE, "compressed": DAMAGED, "repaired": DENSE}
    sentence = said(tmp_path, models, recovery="idp", selector={"kind": "coin"}, choice={"kind": "coin", "seed": 0})
    drawn = "one training seed, one draw of prompts, one draw of calibration text: the interval holds for these only."
    assert sentence.endswith(drawn)
    untrained = {"recovery": "hard_prompt", "trained": False, "compressor": "rtn3"}
    assert "holds for" not in said(tmp_path / "untrained", models, **untrained)


def test_more_documents_than_there_are(tmp_path):
    hardly = {"arc_easy": hits(90, 120, 9, 36), "piqa": hits(80, 120, 2, 20)}
    sentence = said(tmp_path, {"dense": DENSE, "compressed": DAMAGED, "repaired": hardly})
    assert re.search(r"about [\d,]+ would decide it, more than some tasks have;", sentence), sentence


def test_harm(tmp_path):
    worse = {"arc_easy": hits(90, 120, 2, 50), "piqa": hits(80, 120, 2, 40)}
    sentence = said(tmp_path, {"dense": DENSE, "compressed": DAMAGED, "repaired": worse})
    assert "; prompt does harm: it takes another 16.7 points (" in sentence and "brings back" not in sentence


def test_no_damage_beyond_noise(tmp_path):
    same = {"arc_easy": hits(90, 120, 3, 5), "piqa": hits(80, 120)}
    models = {"dense": DENSE, "compressed": same}
    sentence = said(tmp_path / "damage", models, recovery="none", compressor="rtn4")
    assert sentence.startswith("nothing to repair here: rtn4 differs from dense by -0.8 points (-")
    assert "costs" not in sentence and "if this one is real, about " in sentence
    sentence = said(tmp_path / "repair", models | {"repaired": {**same, "piqa": hits(80, 120, 20, 0)}})
    assert (
        "prompt adds +8.3 points (" in sentence and "where there was no damage beyond noise to bring back" in sentence
    )
    assert "brings back" not in sentence


def test_damage_that_only_text_shows_is_damage(tmp_path):
    same = {"arc_easy": hits(90, 120, 3, 5), "piqa": hits(80, 120)}
    windows = [3.0, 3.4, 3.2, 3.9]
    losses = {"dense": windows, "compressed": [loss + 0.5 for loss in windows]}
    texts = {row: {"c4": each} for row, each in losses.items()}
    models = {"dense": DENSE, "compressed": same}
    found = record(tmp_path, models, recovery="none", compressor="rtn4", texts=texts)["idp"]["conclusion"]
    assert found.startswith("rtn4 differs from dense by -0.8 points (-")
    assert ", within noise; on text (c4) it lost more than noise;" in found


def test_nothing_changed_is_not_taken_for_proof_of_nothing(tmp_path):
    sentence = said(tmp_path, {"dense": DENSE, "compressed": DENSE}, recovery="none", compressor="rtn8")
    assert sentence == (
        "rtn8 changes no document's outcome in mean accuracy over 2 tasks; 240 documents without a change leave room"
        " for 1.2 % of documents to change unseen."
    )


def test_a_stand_in_is_never_called_by_the_other_s_name(tmp_path):
    tasks = {"arc_easy": hits(90, 120), "webqs": hits(20, 120)}
    models = {"dense": tasks, "compressed": {"arc_easy": hits(90, 120, 0, 30), "webqs": hits(20, 120)}}
    sentence = said(tmp_path / "two", models, recovery="none", stand_ins={"webqs": "nq_open"})
    assert "mean accuracy over 2 tasks (nq_open in place of webqs)" in sentence
    models = {row: {"webqs": scores["webqs"]} for row, scores in models.items()}
    sentence = said(tmp_path / "one", models, recovery="none", stand_ins={"webqs": "nq_open"})
    assert "in accuracy on nq_open in place of webqs" in sentence


def test_one_document_decides_nothing(tmp_path):
    models = {"dense": {"arc_easy": [1.0], "piqa": [1.0]}, "compressed": {"arc_easy": [0.0], "piqa": [0.0]}}
    sentence = said(tmp_path, models, recovery="none")
    assert sentence.startswith("gptq3 differs from dense by ")
    assert "a single document of a task says nothing of noise, so nothing is decided" in sentence


def test_what_peeks_is_an_upper_bound(tmp_path):
    better = {"arc_easy": hits(90, 120, 6, 12), "piqa": hits(80, 120, 4, 6)}
    selector = {"kind": "hindsight", "peeks": True}
    models = {"dense": DENSE, "compressed": DAMAGED, "repaired": better}
    sentence = said(tmp_path, models, recovery="idp", selector=selector)
    assert "idp (hindsight): +15.8 points (" in sentence
    assert "an upper bound that uses the labels, no method" in sentence
    assert "brings back" not in sentence and "would show" not in sentence
    found = record(tmp_path / "luck", models, recovery="idp", selector=selector)
    found["idp"]["controls"] = {"mean": {"beyond_luck": 0.002, "beyond_luck_interval": [-0.011, 0.015]}}
    assert "of its lead over a random prompt +0.2 points (-1.1 to +1.5) is beyond luck;" in conclusion(found)


def test_on_the_dense_model_a_gain_is_no_repair(tmp_path):
    better = {"arc_easy": hits(90, 120, 20, 0), "piqa": hits(80, 120, 10, 0)}
    sentence = said(tmp_path, {"dense": DENSE, "repaired": better}, compressor="none")
    assert sentence.startswith("prompt adds +12.5 points (")
    assert "on the dense model, in mean accuracy over 2 tasks: where nothing was damaged that is adaptation" in sentence


def test_a_single_model(tmp_path):
    sentence = said(tmp_path / "repaired", {"repaired": DENSE}, baselines=False)
    assert sentence == (
        "gptq3 with prompt scores 0.708 in mean accuracy over 2 tasks; nothing was measured to compare it with"
        " (baselines=false)."
    )
    sentence = said(tmp_path / "dense", {"dense": DENSE}, compressor="none", recovery="none")
    assert sentence.startswith("the dense model scores 0.708") and "nothing to compare" in sentence


def test_other_units_are_no_points_and_other_metrics_no_accuracy(tmp_path):
    models = {"dense": {"crows": [4.0, 5.0, 3.0] * 9}, "compressed": {"crows": [5.0, 6.5, 4.25] * 9}}
    sentence = said(tmp_path, models, recovery="none", metric="likelihood_diff,none", lower=True)
    assert sentence.startswith("gptq3 costs 1.250 (1.") and "of score on crows" in sentence
    assert "points" not in sentence and "accuracy" not in sentence


def test_the_sharper_outcome_speaks_where_hits_do_not(tmp_path):
    found = record(tmp_path, {"dense": DENSE, "compressed": DENSE}, recovery="none")
    (only,) = found["idp"]["comparisons"]
    only["graded"]["mean"] |= {"difference": -0.012, "low": -0.02, "high": -0.004, "p": 0.003}
    assert "the probability of the right choice, which says more of a document, falls by 1.2 points (0.4 to 2.0)" in (
        conclusion(found)
    )
