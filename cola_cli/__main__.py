"""`python -m cola_cli`, the form that launchers such as torchrun need."""

from cola_cli.cli.main import main

main()
