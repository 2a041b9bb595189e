"""`python -m lacache` is the command `lacache`."""

from lacache.cli import main

main()
