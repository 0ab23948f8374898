"""Data sets, one a file, each with `make_source(config, split)`; `pipeline` orders them, `augment` varies them."""
