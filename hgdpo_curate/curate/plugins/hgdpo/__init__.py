from hgdpo_curate.curate.operators import register_operators as register  # noqa: F401  FiftyOne calls it
