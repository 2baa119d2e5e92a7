"""Batched greedy decoding behind each row's own prompt, each row ending at its stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import postprocess_generated_text

from idp.prompting.prefix import attention_mask, cache_of
from idp.prompting.repaired import head_only_at

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

    from idp.prompting.repaired import RepairedModel


def decode(
    repaired: RepairedModel,
    contexts: list[list[int]],
    choice: torch.Tensor | None,
    stops: list[str],
    max_new_tokens: int,
) -> tuple[list[str], int]:
    """Greedy continuations of one batch, each cut before the first of `stops`; rows leave the batch as they end.

    Args:
        repaired: the model.
        contexts: token ids, none of them empty.
        choice: [contexts], the prompt of each row, as `RepairedModel.choose` gave it.
        stops: stop strings.
        max_new_tokens: tokens at most.

    Returns:
        the texts, and how many tokens went through the model, padding included.
    """
    import torch

    device, tokenizer = repaired.device, repaired.tokenizer
    width = max(map(len, contexts))
    tokens = torch.zeros(len(contexts), width, dtype=torch.long)
    real = torch.zeros(len(contexts), width, dtype=torch.bool)
    for row, context in enumerate(contexts):  # padded on the left, so that every row's next token is in one column
        tokens[row, width - len(context) :] = torch.tensor(context)
        real[row, width - len(context) :] = True
    tokens, real = tokens.to(device), real.to(device)
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    itself = torch.eye(width, dtype=torch.bool, device=device)
    visible = (real[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()) | itself

    with torch.inference_mode():
        inputs = repaired.attention_inputs(visible, positions, choice)
        if choice is None:
            inputs |= {"past_key_values": cache_of_nothing(repaired), "use_cache": True}
            seen, seen_positions = real, positions
        else:
            prefix = repaired.prefixes.valid(choice)
            seen = torch.cat([prefix, real], dim=1)
            before = torch.arange(prefix.shape[1], device=device).expand(len(contexts), -1)
            positions = positions + repaired.prefixes.lengths[choice][:, None]
            seen_positions = torch.cat([before, positions], dim=1)
        last = torch.arange(1, len(contexts) + 1, device=device) * width - 1
        with head_only_at(repaired.model, last):
            output = repaired.model(input_ids=tokens, **inputs)
        logits, cache = output.logits[0], output.past_key_values
        generated: list[list[int]] = [[] for _ in contexts]
        alive = list(range(len(contexts)))
        next_position = positions[:, -1:] + 1
        while alive:
            newest = logits.argmax(dim=-1)
            going = []
            for place, (row, token) in enumerate(zip(alive, newest.tolist(), strict=True)):
                generated[row].append(token)
                if len(generated[row]) < max_new_tokens and not _stopped(tokenizer, generated[row], stops):
                    going.append(place)
            if not going:
                break
            if len(going) < len(alive):
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                seen, seen_positions, next_position = seen[keep], seen_positions[keep], next_position[keep]
                newest, alive = newest[keep], [alive[place] for place in going]
            seen = torch.cat([seen, seen.new_ones(len(alive), 1)], dim=1)
            seen_positions = torch.cat([seen_positions, next_position], dim=1)
            output = repaired.model(
                input_ids=newest[:, None],
                attention_mask=attention_mask(repaired.model, seen[:, None, :], next_position, seen_positions),
                position_ids=next_position,
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
            next_position = next_position + 1
    texts = (tokenizer.decode(row, skip_special_tokens=True) for row in _without_end(generated, tokenizer.eos_token_id))
    cut = [postprocess_generated_text(text, stop=stops, think_end_token=None) for text in texts]
    return cut, tokens.numel() + sum(map(len, generated))


def cache_of_nothing(repaired: RepairedModel) -> DynamicCache:
    """An empty cache whose layers are all full ones."""
    from transformers.cache_utils import DynamicLayer

    cache = cache_of([])
    cache.layers.extend(DynamicLayer() for _ in range(repaired.model.config.get_text_config().num_hidden_layers))
    return cache


def _stopped(tokenizer: Any, tokens: list[int], stops: list[str]) -> bool:
    if tokens[-1] == tokenizer.eos_token_id:
        return True
    # A stop string may end inside the newest token and begin a few tokens before it.
    tail = tokenizer.decode(tokens[-(max(map(len, stops)) + 2) :])
    return any(stop and stop in tail for stop in stops)


def _without_end(generated: list[list[int]], end: int | None) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in generated]
