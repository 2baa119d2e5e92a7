"""The claims of the two prompt papers, each put to a test on the cells of one setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from idp.analyze import bank, speed
from idp.analyze.cells import dense_of, pair, repairs, together, unrepaired_of, weights_of
from idp.analyze.compare import p_value
from idp.analyze.evidence import Claim, Evidence, difference
from idp.records.cell import Cell, complete
from idp.records.measured import COMPRESSED, DENSE
from idp.stats.significance import LEVEL, Paired, equivalence, paired_interval, unseen

HOANG, XU = "Hoang et al., 2310.00867", "Xu et al., 2305.11186"
SHORT = 25  # tokens: a short prompt
FEWER, FASTER = 21, 0.6  # times fewer parameters than LoRA; less latency than LoRA
DAMAGE = 0.02  # nats per token: less than this is no damage to speak of


def better_than_one_prompt(cells: Sequence[Cell], margin: float) -> Claim:
    claim = Claim(
        "IDP is better than one prompt",
        "A bank of prompts with one chosen per input beats a single prompt (+1.24 % on average over nine tasks).",
        HOANG,
        "Mean accuracy of recovery=idp minus that of recovery=prompt of as many tokens as the bank has in all (else the"
        " longest), and minus that of the bank's own best prompt by held-out loss. Paired over documents and"
        f" seeds. Not supported where the interval leaves no room for {100 * margin:g} point.",
    )
    for idp in _main_idp(cells):
        prompts = [cell for cell in repairs(cells, "prompt") if weights_of(cell) == weights_of(idp)]
        whole = sum(idp.first.prompt_lengths)
        prompts.sort(key=lambda cell: (_length(cell) == whole, _length(cell), len(cell.members)))
        if prompts and (scores := pair(prompts[-1], idp)[0]):
            claim.evidence.append(_difference(_against(idp, prompts[-1]), scores, margin))
        if chosen := bank.best_and_chosen(idp):
            what = f"{idp.name} against the best prompt of its bank"
            claim.evidence.append(_difference(what, chosen, margin))
    if not claim.evidence:
        claim.needs.append(need("recovery=prompt and recovery=idp on one compressed model", "nine_tasks"))
    return claim


def comparable_to_lora(cells: Sequence[Cell], margin: float) -> Claim:
    claim = Claim(
        "IDP is comparable to LoRA",
        "IDP recovers as much as, or more than, LoRA.",
        HOANG,
        "Two one-sided tests of the difference of mean accuracy, IDP minus LoRA, against a margin of"
        f" {100 * margin:g} point: the claim needs evidence that IDP is not worse by as much (its p stands here; that"
        " of the other side in the note). A difference that is merely not significant decides nothing.",
    )
    for idp in _main_idp(cells):
        loras = [cell for cell in repairs(cells, "lora") if weights_of(cell) == weights_of(idp)]
        if not loras:
            continue
        lora = _main(loras)
        if scores := pair(lora, idp)[0]:
            claim.evidence.append(_not_worse(_against(idp, lora), scores, margin))
    if not claim.evidence:
        claim.needs.append(need("recovery=idp and recovery=lora on one compressed model", "nine_tasks"))
    return claim


def fewer_parameters(cells: Sequence[Cell], margin: float) -> Claim:
    claim = Claim(
        f"IDP adds {FEWER} times fewer parameters than LoRA",
        f"IDP needs {FEWER}x fewer extra parameters than LoRA.",
        HOANG,
        "Parameters that LoRA adds, divided by those that IDP adds, selector included; exact. The paper says neither"
        " rank nor lengths: rank 8 on queries and values over one prompt of 50 tokens is 20.5 on LLaMA-7B.",
    )
    seen = set()
    for idp in _main_idp(cells):
        for lora in repairs(cells, "lora"):
            added = lora.first.parameters["added"], idp.first.parameters["added"]
            if weights_of(lora)[:1] == weights_of(idp)[:1] and all(added) and added not in seen:
                seen.add(added)
                ratio = added[0] / added[1]
                what = f"{lora.recovery} ({added[0]:,}) over {idp.recovery} ({added[1]:,})"
                holds = round(ratio) >= FEWER
                claim.evidence.append(Evidence(what, ratio, None, None, "ratio", holds=holds, refuted=not holds))
    if not claim.evidence:
        claim.needs.append(need("recovery=idp and recovery=lora", "latency_and_parameters"))
    return claim


def lower_latency(cells: Sequence[Cell], margin: float) -> Claim:
    claim = Claim(
        f"IDP has {100 * FASTER:.0f} % lower latency than LoRA",
        f"IDP lowers inference latency by {100 * FASTER:.0f} % against LoRA.",
        HOANG,
        "1 - IDP's latency / that of LoRA that is not merged into the weights, prefill and decode apart, each first"
        " taken as a ratio to the compressed model timed in the same rounds. Merged LoRA costs nothing, so there is no"
        " such gain over it. Intervals from the spread of rounds.",
    )
    for idp in repairs(cells, "idp"):
        for lora in repairs(cells, "lora"):
            if weights_of(idp) == weights_of(lora):
                for what, found in speed.reductions(idp, lora):
                    holds, refuted = found.low >= FASTER, found.high < FASTER
                    claim.evidence.append(
                        Evidence(what, found.difference, found.low, found.high, "share", holds=holds, refuted=refuted)
                    )
    if not claim.evidence:
        claim.needs.append(need("latency of recovery=idp and recovery=lora on one machine", "latency_and_parameters"))
    return claim


def short_prompts_suffice(cells: Sequence[Cell], margin: float) -> Claim:
    claim = Claim(
        "Short prompts suffice",
        "A prompt of few tokens recovers about as much as a long one.",
        HOANG,
        f"recovery=prompt: the longest of at most {SHORT} tokens against the longest there is: evidence that it is not"
        f" worse by {100 * margin:g} point (one-sided, paired over documents and seeds).",
    )
    for group in _by_base(repairs(cells, "prompt")):
        lengths = {_length(cell): cell for cell in sorted(group, key=lambda cell: len(cell.members))}
        few = [length for length in lengths if length <= SHORT]
        if len(lengths) > 1 and few and max(few) < max(lengths):
            short, long = lengths[max(few)], lengths[max(lengths)]
            if scores := pair(long, short)[0]:
                claim.evidence.append(_not_worse(_against(short, long), scores, margin))
    if not claim.evidence:
        claim.needs.append(need("recovery=prompt with short and long prompts", "prompt_length"))
    return claim


def perplexity_misleads(cells: Sequence[Cell], margin: float) -> Claim:
    claim = Claim(
        "Perplexity misleads",
        "Perplexity looks repaired, or undamaged, where tasks show damage.",
        HOANG,
        "If perplexity told the truth, a repair that brings back the share r of the lost log-perplexity would bring"
        " back the share r of the lost accuracy. Figure: accuracy minus what perplexity promises, (1 - r) compressed +"
        f" r dense; below 0 it promised too much. Not supported where the interval leaves no room for {100 * margin:g}"
        " point. And: pairs of dense and compressed models that perplexity and tasks rank in opposite order, tested"
        " one by one (smallest p times their number).",
    )
    for cell in repairs(cells):
        dense, compressed = dense_of(cells, cell), unrepaired_of(cells, cell)
        if dense is None or compressed is None or dense is compressed:
            continue
        promise = _promise(dense, compressed, cell)
        if promise is None:
            continue
        corpus, share, scores = promise
        found = paired_interval(scores)
        claim.evidence.append(
            Evidence(
                f"{cell.name}: {100 * share:.0f} % of the loss of {corpus} brought back",
                found.difference,
                found.low,
                found.high,
                "points",
                p=found.p,
                holds=found.difference < 0,
                refuted=found.low > -margin and unseen(margin, document_count(scores)) < LEVEL,
                detectable=found.detectable,
                documents_to_decide=found.documents_to_decide,
            )
        )
    if ranks := _opposite(cells):
        claim.evidence.append(ranks)
    if not claim.evidence:
        claim.needs.append(need("dense, compressed and repaired models with perplexity", "nine_tasks"))
    return claim


def prompts_transfer(cells: Sequence[Cell], margin: float) -> Claim:
    claim = Claim(
        "Prompts transfer",
        "A prompt learned on one compressed model repairs another (another compressor, level or data set).",
        XU,
        "Mean accuracy of the compressed model with the transferred repair minus without any; paired over"
        " documents and seeds. In the note, the same for the repair that was learned in place. Not supported where the"
        f" interval leaves no room for {100 * margin:g} point.",
    )
    for cell in repairs(cells):
        if (origin := cell.first.transfer) is None:
            continue
        before = unrepaired_of(cells, cell)
        if before is None or not (scores := pair(before, cell)[0]):
            continue
        kind = origin["kind"]
        own_kind = [each for each in repairs(cells) if each.first.recovery == kind]
        native = [each for each in own_kind if weights_of(each) == weights_of(cell)]
        note = ""
        if native and (in_place := pair(before, _main(native))[0]):
            note = f"learned in place: {100 * paired_interval(in_place).difference:+.1f}"
        claim.evidence.append(_difference(f"{cell.name} against no repair", scores, margin, note))
    if not claim.evidence:
        claim.needs.append(need("recovery=transfer", "transfer recovery.from=outputs/nine_tasks/runs/RUN"))
    return claim


CLAIMS = (
    better_than_one_prompt,
    comparable_to_lora,
    fewer_parameters,
    lower_latency,
    short_prompts_suffice,
    perplexity_misleads,
    prompts_transfer,
)


def need(what: str, experiment: str) -> str:
    return f"{what}: `python -m idp.run -m +experiment={experiment}MODEL`"


def _against(after: Cell, before: Cell) -> str:
    return f"{after.name} against {before.recovery}"


def _measured(scores: Paired) -> str:
    runs = [len(side) for side in next(iter(scores.values()))]
    many = f"{runs[0]} and {runs[1]} runs" if max(runs) > 1 else "1 run each"
    return f"{len(scores)} task{'s' * (len(scores) > 1)}, {document_count(scores)} documents, {many}"


def document_count(scores: Paired) -> int:
    return sum(before.shape[1] for before, _ in scores.values())


def _difference(what: str, scores: Paired, margin: float, note: str = "") -> Evidence:
    text = "; ".join(part for part in (_measured(scores), note) if part)
    return difference(what, paired_interval(scores), margin, document_count(scores), text)


def _not_worse(what: str, scores: Paired, margin: float) -> Evidence:
    wide, both = paired_interval(scores), equivalence(scores, margin)
    note = f"{_measured(scores)}; not better by the margin: p = {p_value(both.not_better)}"
    refuted = wide.high < 0 and both.not_worse >= LEVEL
    return Evidence(what, wide.difference, wide.low, wide.high, "points", p=both.not_worse, refuted=refuted, note=note)


def _main(cells: Sequence[Cell]) -> Cell:
    """Of several ways to do one thing, the one with the most runs, then documents, then the fewest parameters.

    A rule that does not look at scores.
    """
    return max(
        cells,
        key=lambda cell: (
            len(cell.members),
            sum(score.documents for score in cell.first.tasks.values()),
            -cell.first.parameters["added"],
        ),
    )


def _main_idp(cells: Sequence[Cell]) -> list[Cell]:
    """IDP as the paper has it, its selector among the rest: one cell for each compressed model.

    Where no cell has the paper's selector, one whose selector does choose; one prompt for all inputs is not IDP.
    """
    groups = _by_base([cell for cell in repairs(cells, "idp") if not cell.first.constant])
    published = [[cell for cell in group if cell.first.published] for group in groups]
    return [_main(chosen or group) for chosen, group in zip(published, groups, strict=True)]


def _by_base(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells by the compressed model that they repair; those on the dense model are left out."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.first.compressor != "none":
            groups.setdefault(weights_of(cell), []).append(cell)
    return list(groups.values())


def _length(cell: Cell) -> int:
    return max(cell.first.prompt_lengths, default=0)


def _promise(dense: Cell, compressed: Cell, repaired: Cell) -> tuple[str, float, Paired] | None:
    """The corpus, the share of the lost log-perplexity that a repair brings back, and promised and real scores."""
    scores, _ = together([dense, compressed, repaired])
    for corpus in sorted(repaired.first.perplexity, key=lambda name: name != "wikitext2"):
        nats = complete(_nats(cell, corpus) for cell in (dense, compressed, repaired))
        if scores and nats and all(map(math.isfinite, nats)) and nats[1] - nats[0] > DAMAGE:
            share = (nats[1] - nats[2]) / (nats[1] - nats[0])
            promised = {
                task: ((1 - share) * tables[1].mean(0) + share * tables[0].mean(0), tables[2])
                for task, tables in scores.items()
            }
            return corpus, share, {task: (np.atleast_2d(one), real) for task, (one, real) in promised.items()}
    return None


def _nats(cell: Cell, corpus: str) -> float | None:
    values = [run.perplexity[corpus].value for run in cell.members if corpus in run.perplexity]
    return float(np.mean(np.log(values))) if len(values) == len(cell.members) else None


def _opposite(cells: Sequence[Cell]) -> Evidence | None:
    """Pairs of dense and compressed models that perplexity and tasks rank in opposite order."""
    models = [cell for cell in cells if cell.first.role in (DENSE, COMPRESSED)]
    corpora = set.intersection(*(set(cell.first.perplexity) for cell in models)) if models else set()
    if not corpora or len(models) < 3:
        return None
    corpus = min(corpora, key=lambda name: (name != "wikitext2", name))
    pairs, against, best = 0, 0, None
    for one, other in combinations(models, 2):
        likelier, less = sorted((one, other), key=lambda cell: cell.first.perplexity[corpus].value)
        if not (scores := pair(likelier, less)[0]):
            continue
        pairs += 1
        means = [np.mean([side.mean() for side in sides]) for sides in zip(*scores.values(), strict=True)]
        if means[1] <= means[0]:
            continue
        against += 1
        p = paired_interval(scores).p
        if best is None or p < best[0]:
            best = p, less.name, likelier.name
    if not pairs:
        return None
    note = f"most clearly: {best[1]} scores above {best[2]}" if best else ""
    return Evidence(
        f"{against} of {pairs} pairs of models ranked in opposite order by {corpus}",
        against / pairs,
        None,
        None,
        "share",
        p=min(1.0, best[0] * pairs) if best else 1.0,
        holds=against > 0,
        note=note,
    )
