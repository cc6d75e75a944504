"""`python -m hgdpo_curate <verb>`, which is also what `accelerate launch -m` starts."""
import sys

from .cli import main

sys.exit(main())
