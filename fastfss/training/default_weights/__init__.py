"""How the package's own weights are made: `python -m fastfss.training.default_weights --help`."""
