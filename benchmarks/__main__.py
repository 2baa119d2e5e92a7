"""`python -m benchmarks [benchmark] ...`, the same as `idp bench`."""

from idp.bench.__main__ import main

if __name__ == "__main__":
    main()
