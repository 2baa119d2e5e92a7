"""One sentence that closes a run: what it showed, and what it could not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idp.records.differences import SHARE, damage, last_step, share, unchanged
from idp.records.schema import Comparison, Record, Test
from idp.records.scores import lower_is_better, main_metric, main_scores
from idp.records.seeds import calibrated
from idp.stats.significance import LEVEL

ACCURACIES = ("acc", "acc_norm", "exact_match")


def conclusion(record: Record) -> str:
    """What the run's differences say, with their intervals; what stays undecided, and what it would take to decide it.

    Only what was measured is claimed: of documents that stand in for a task's, of one training seed, of an upper bound
    that uses the labels.
    """
    step = last_step(record)
    if step is None or step["mean"] is None:
        parts = _alone(record)
    else:
        parts = [*_cost(record), *_effect(record, step), *_graded(record, step), *_texts(record, step)]
        parts += [*_reach(record, step), *_draws(record)]
    return "; ".join(parts) + "."


def _alone(record: Record) -> list[str]:
    """Of a run that compares nothing."""
    about, scores = record["idp"], main_scores(record, record["results"])
    row, made = about["row"], about["compressor"]
    name = {"dense": "the dense model", "compressed": made, "repaired": f"{made} with {_repair(record)}"}[row]
    parts = [f"{name} scores {sum(scores.values()) / len(scores):.3f} in {_subject(record)}"]
    if _uses_labels(record):
        parts.append("an upper bound that uses the labels, no method")
    if last_step(record) is not None:
        parts.append("no task's score is a mean over documents, so no difference has an interval")
    elif row == "dense":
        parts.append("nothing was compressed or repaired, so there is nothing to compare")
    elif about["baselines"]:
        parts.append("the record is from before differences were part of one")
    else:
        parts.append("nothing was measured to compare it with (baselines=false)")
    return parts


def _cost(record: Record) -> list[str]:
    """What compression did."""
    found, name = damage(record), record["idp"]["compressor"]
    if found is None or found["mean"] is None:
        return []
    mean, subject = found["mean"], _subject(record, found["left_out"])
    if unchanged(mean):
        return [f"{name} changes no document's outcome in {subject}"]
    differs = f"{name} differs from dense by {_signed(found, mean)} in {subject}"
    if not _decided(record, mean):
        if not _spread_known(record):
            return [differs]
        worse = [text for text, test in (found.get("texts") or {}).items() if test["high"] < 0]
        if worse:  # which takes far less reading to show
            return [f"{differs}, within noise; on text ({', '.join(worse)}) it lost more than noise"]
        return [f"nothing to repair here: {differs}, within noise"]
    if mean["difference"] < 0:
        return [f"{name} costs {_lost(found, mean)} of {subject}"]
    return [f"nothing to repair here: {differs}, a gain"]


def _effect(record: Record, step: Comparison) -> list[str]:
    """What the repair did."""
    if step["after"] != "repaired":
        return []
    name, mean, on_dense = _repair(record), _mean(step), step["before"] == "dense"
    where = f" on the dense model, in {_subject(record, step['left_out'])}" if on_dense else ""
    signed, lost = _signed(step, mean) + where, _lost(step, mean) + where
    if unchanged(mean):
        return [f"{name} changes no document's outcome{where}"]
    if _uses_labels(record):
        return [f"{name}: {signed}, an upper bound that uses the labels, no method", *_beyond_luck(record, step)]
    if not _decided(record, mean):
        damaged = step.get("damage_brought_back") and mean["difference"] > 0
        return [f"{name} {'brings back' if damaged else 'adds'} {signed}: undecided"]
    if mean["difference"] < 0:
        return [f"{name} does harm: it takes {'another ' if step.get('damage_brought_back') else ''}{lost}"]
    if on_dense:
        return [f"{name} adds {signed}: where nothing was damaged that is adaptation, no repair"]
    if found := step.get("damage_brought_back"):
        return [f"{name} brings back {signed}, {share(found)} of the damage"]
    return [f"{name} adds {signed}, where there was no damage beyond noise to bring back"]


def _beyond_luck(record: Record, step: Comparison) -> list[str]:
    """How much of such a bound's lead over a random prompt is more than equal prompts would give it."""
    mean = (record["idp"].get("controls") or {}).get("mean") or {}
    if mean.get("beyond_luck") is None:
        return []
    low, high = mean["beyond_luck_interval"]
    beyond = _signed(step, {"difference": mean["beyond_luck"], "low": low, "high": high})
    return [f"of its lead over a random prompt {beyond} is beyond luck"]


def _graded(record: Record, step: Comparison) -> list[str]:
    """What the sharper outcome decides where hits do not."""
    found = step.get("graded")
    graded = found["mean"] if found else None
    if graded is None or _uses_labels(record) or _decided(record, _mean(step)) or not _decided(record, graded):
        return []
    return [f"the probability of the right choice, which says more of a document, {_moves(graded)}"]


def _texts(record: Record, step: Comparison) -> list[str]:
    """What a repair brings back of what compression took on running text, which shows sooner than in tasks."""
    if (step["after"], step["before"]) != ("repaired", "compressed") or _uses_labels(record):
        return []
    texts = (step.get("texts") or {}).items()
    known = [f"{share(found)} on {text}" for text, test in texts if (found := test.get("damage_brought_back"))]
    return [f"of the nats per token that compression took on text it brings back {', '.join(known)}"] if known else []


def _reach(record: Record, step: Comparison) -> list[str]:
    """The least difference that the run would have shown, and what an undecided one would take."""
    if _uses_labels(record):
        return []
    if not _spread_known(record):
        return ["a single document of a task says nothing of noise, so nothing is decided"]
    mean = _mean(step)
    parts = []
    counts = {task: data["documents"] for task, data in record["idp"]["data"].items() if task not in step["left_out"]}
    total = sum(counts.values())
    if unchanged(mean):
        room = 1 - LEVEL ** (1 / total)  # a change of this share would leave so many documents alone in 5 %
        return [f"{total:,} documents without a change leave room for {100 * room:.1f} % of documents to change unseen"]
    if detectable := mean.get("detectable"):
        parts.append(f"{total:,} documents would show a difference of {_amount(step, detectable)} or more (80 % power)")
    if not _decided(record, mean) and (wanted := mean.get("documents_to_decide")):
        held = min(record["idp"]["data"][task].get("documents_in_split") or 0 for task in counts)
        more = ", more than some tasks have" if held and wanted > held else ""
        parts.append(f"if this one is real, about {_rounded(wanted * len(counts)):,} would decide it{more}")
    return parts


def _draws(record: Record) -> list[str]:
    """What was drawn once, so that the intervals, which are over documents, hold for that draw only."""
    about = record["idp"]
    drawn: dict[str, str] = {}
    if about["row"] == "repaired":
        if about.get("transfer"):
            drawn["one repair from elsewhere"] = "repair"
        elif about.get("training"):
            drawn["one training seed"] = "seed"
        if "seed" in (about["config"]["recovery"].get("selector") or {}):
            drawn["one draw of prompts"] = "draw"
    if calibrated(about["weights"], about["config"]["compressor"]):
        drawn["one draw of calibration text"] = "draw"
    if not drawn:
        return []
    which = "these" if len(drawn) > 1 else f"that {next(iter(drawn.values()))}"
    return [f"{', '.join(drawn)}: the interval holds for {which} only"]


def _repair(record: Record) -> str:
    about = record["idp"]
    kind, selector = about["config"]["recovery"]["kind"], about.get("selector")
    return f"{kind} ({selector['kind']})" if selector else kind


def _uses_labels(record: Record) -> bool:
    selector = record["idp"].get("selector")
    return bool(selector and selector.get("peeks"))


def _subject(record: Record, left_out: list[str] | tuple = ()) -> str:
    """What differences are of: `mean accuracy over 9 tasks (nq_open in place of webqs)`."""
    data = {task: each for task, each in record["idp"]["data"].items() if task not in left_out}
    runs = {task: each["stand_in"] or task for task, each in data.items()}
    metrics = {main_metric(name, record["results"][name]).split(",")[0] for name in runs.values()}
    accuracy = metrics <= set(ACCURACIES) and not any(lower_is_better(record, task) for task in runs)
    kind = "accuracy" if accuracy else "score"
    places = [f"{name} in place of {task}" for task, name in runs.items() if name != task]
    if len(runs) == 1:
        return f"{kind} on {places[0] if places else next(iter(runs))}"
    beside = [*places, *([f"without {', '.join(left_out)}"] if left_out else [])]
    return f"mean {kind} over {len(runs)} tasks" + (f" ({'; '.join(beside)})" if beside else "")


def _decided(record: Record, test: Test) -> bool:
    apart = test["low"] > 0 or test["high"] < 0
    return apart and test["p"] < LEVEL and _spread_known(record)


def _spread_known(record: Record) -> bool:
    return all(data["documents"] > 1 for data in record["idp"]["data"].values())


def _mean(step: Comparison) -> Test:
    mean = step["mean"]
    assert mean is not None  # or there is nothing to conclude from: `conclusion`
    return mean


def _moves(graded: Test) -> str:
    verb, sign = ("rises", 1) if graded["difference"] > 0 else ("falls", -1)
    low, high = sorted((sign * graded["low"], sign * graded["high"]))
    return f"{verb} by {100 * abs(graded['difference']):.1f} points ({100 * low:.1f} to {100 * high:.1f})"


def _signed(comparison: Comparison, test: Mapping[str, Any]) -> str:
    """A difference with its interval: `+0.4 points (-0.3 to +1.1)`."""
    low, high = (_number(comparison, test[key], "+") for key in ("low", "high"))
    return f"{_number(comparison, test['difference'], '+')}{_unit(comparison)} ({low} to {high})"


def _lost(comparison: Comparison, test: Test) -> str:
    """A loss with its interval, without signs: `1.2 points (0.3 to 2.1)`."""
    low, high = (_number(comparison, -test[key]) for key in ("high", "low"))
    return f"{_number(comparison, -test['difference'])}{_unit(comparison)} ({low} to {high})"


def _amount(comparison: Comparison, value: float) -> str:
    return f"{_number(comparison, value)}{_unit(comparison)}"


def _unit(comparison: Comparison) -> str:
    return " points" if comparison["unit"] == SHARE else ""


def _number(comparison: Comparison, value: float, sign: str = "") -> str:
    scale, digits = (100, 1) if comparison["unit"] == SHARE else (1, 3)
    return f"{round(scale * value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no minus before a zero


def _rounded(count: float) -> int:
    """To two significant digits: such counts are rough."""
    return int(float(f"{count:.1e}"))
