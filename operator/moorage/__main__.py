"""`python -m moorage` is the `moorage` command."""

from moorage.cli import main

main()
