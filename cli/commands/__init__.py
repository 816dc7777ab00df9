"""The commands of `pyro-ltm`: one file each, imported when it is asked for."""
