"""`python -m vapo` is `vapo`."""

from vapo.cli import main

main()
