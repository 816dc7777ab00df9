"""`python -m pyro_ltm_cli`: the command line, as `torchrun` starts it."""

from .main import main

main()
