"""``python -m rondevud`` is ``rondevud``."""

from runpy import run_module

run_module("rondevud.main", run_name="__main__", alter_sys=True)
