from hgdpo_curate.curate.panels import register_all as register  # noqa: F401  FiftyOne calls it
