from hgdpo_curate.curate.operators import register  # noqa: F401  FiftyOne calls it
