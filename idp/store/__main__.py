"""`python -m idp.store`."""

from idp.store.command import main

main()
