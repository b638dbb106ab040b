"""One module per command: docstring as help text, `add_arguments(parser)`, and `run(args, out)` for the exit status."""
