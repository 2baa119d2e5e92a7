"""lm-eval's command line with the model `idp`: `python -m idp.lm_eval --model idp --model_args record=...`.

lm-eval knows the models of its own registry, and asks no other package for more; so ours is registered first, and then
lm-eval reads the words as always.
"""

from __future__ import annotations

from idp.command import failures_in_one_line, quiet_libraries

quiet_libraries()


def main() -> None:
    """The command line: whatever is wrong with the model is one line on standard error and a non-zero exit status."""
    with failures_in_one_line("interrupted", command="lm_eval"):
        from lm_eval.__main__ import cli_evaluate

        import idp.lm_eval_model  # noqa: F401  (registers it)

        cli_evaluate()


if __name__ == "__main__":
    main()
