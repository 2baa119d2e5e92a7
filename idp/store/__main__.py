"""`python -m idp.store`."""

from idp.store_command import main

main()
