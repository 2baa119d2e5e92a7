"""`python -m idp <command> ...`, the same as `idp <command> ...`."""

from idp.cli import main

if __name__ == "__main__":
    main()
