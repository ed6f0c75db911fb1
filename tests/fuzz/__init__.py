"""A coverage-guided fuzzer for the readers of foreign bytes; `python -m tests.fuzz --help`."""
