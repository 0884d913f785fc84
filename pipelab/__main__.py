"""`python -m pipelab`: the same as the `pipelab` command."""

import sys

from pipelab.cli import main

sys.exit(main())
