"""`python -m batchnlp`."""

from batchnlp.cli.main import main

main()
