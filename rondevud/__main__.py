"""``python -m rondevud`` is ``rondevud``."""

from rondevud.main import main

main()
