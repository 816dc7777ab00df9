"""The command line `pyro-ltm`: parses, calls the library, prints. Installed as `pyro_ltm_cli`."""
