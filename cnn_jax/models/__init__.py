"""Networks, one paper a file, each with `VARIANTS` and `build(variant, ...)`."""
