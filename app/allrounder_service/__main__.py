"""`python -m allrounder_service` is the `allrounder` command."""

from allrounder_service.cli import main

main()
