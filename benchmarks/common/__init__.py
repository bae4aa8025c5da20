"""What the scripts of this folder share. They are run as `python benchmarks/NAME.py`, which makes it importable."""
