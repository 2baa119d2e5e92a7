"""The model `idp` of lm-eval: a run or an export with its bank, scored by the evaluation's own scorer.

Importing this module registers it: `lm_eval.simple_evaluate(model="idp", model_args="record=...")` then knows it.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.api.registry import register_model

from idp import api, asked
from idp.errors import UserError, out_of_memory_is_explained
from idp.evaluate.engine import LocalEngine
from idp.evaluate.scorer import Scorer

NAME = "idp"
LM_EVAL_S = "cuda:0"  # its device where none is said, as on a machine without one


@register_model(NAME)
class IdpLM(Scorer):
    """A model of a run, each input behind the prompt that the bank's selector gives it."""

    def __init__(
        self,
        record: str = "",
        variant: str = "repaired",
        batch_tokens: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        store: str | None = None,
        **others: Any,
    ):
        """Makes one of lm-eval's `--model_args` and options.

        Args:
            record: a run's `record.json` or its folder, or a folder that `idp export` wrote.
            variant: repaired, compressed or dense.
            batch_tokens: tokens per forward pass, padding included; None: as in the run.
            dtype: float32, bfloat16 or float16; None: the one that was measured.
            device: where to; None: as in the run (an export: a GPU if there is one).
            store: the folder of stored products, if it was moved.
            others: lm-eval's batch sizes, in documents, which say nothing here.

        Raises:
            UserError: there is no such run, it has no such variant, or an argument is not known.
        """
        for name in ("batch_size", "max_batch_size"):
            others.pop(name, None)
        if others:
            raise UserError(
                f"--model_args: the model {NAME} does not take {', '.join(sorted(others))}; use record, variant,"
                " batch_tokens, dtype, device or store"
            )
        if not record:
            raise UserError(f"--model_args: the model {NAME} needs record=<a run's folder or an export>")
        if variant not in api.VARIANTS:
            raise UserError(f"--model_args variant={variant}: use {', '.join(api.VARIANTS)}")
        if dtype is not None and dtype not in api.DTYPES:
            raise UserError(f"--model_args dtype={dtype}: use {', '.join(api.DTYPES)}")
        if batch_tokens is not None:
            asked.check_count("--model_args batch_tokens", batch_tokens)
        if device == LM_EVAL_S and not torch.cuda.is_available():
            device = None
        api.check_device(device)
        found = api.find(str(record), store)
        with out_of_memory_is_explained("load"):
            repaired = found.open(variant, device, dtype)
        super().__init__(LocalEngine(repaired), batch_tokens or found.batch_tokens, variant)
        self.name, self.variant = found.name, variant
        self._device, self._dtype = repaired.device, str(repaired.model.dtype)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the tokenizer's template writes it, for `--apply_chat_template`.

        Raises:
            UserError: the tokenizer has none.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(f"--apply_chat_template: the tokenizer of {self.name} has no chat template")
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's results say of the model."""
        prompts = list(self.engine.prompts)
        return {"idp_run": self.name, "idp_variant": self.variant, "idp_prompts": prompts, "model_dtype": self._dtype}
