"""The verbs of the command line, one module per audience; appliance/cli.py puts them together."""
