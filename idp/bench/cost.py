"""`python -m idp.bench.cost experiment=nine_tasks model=llama_7b`: what a study takes (`idp.plan.cost`)."""

from __future__ import annotations

from idp.plan.cost import main

if __name__ == "__main__":
    main()
