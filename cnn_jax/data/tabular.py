"""Rows of a table shown as pictures, drawn by seed: data that a convolution has no business with.

The lecture's counter-example is a table of customers, whose columns (name, age, purchases) may be exchanged without
loss, whereas a convolution assumes that what lies side by side belongs together. So B. Rohrer, "How do Convolutional
Neural Networks work?", 2016, https://brohrer.github.io/how_convolutional_neural_networks_work.html.

A row has size_px x size_px columns, written into a picture row by row, each a measurement: of mean `separation` times a
draw in -1..1 of its own for each class, and deviation 1. No column says much, all together tell the class; a column's
neighbours tell nothing of it. `shuffle_columns` exchanges the columns, in all rows alike.

Example i of a split depends on (config.data_seed, split, i) and the other fields but the sizes only, so a larger split
begins with the smaller one. Example i is of class i mod num_classes.
"""

import numpy as np
from ml_collections import ConfigDict

from cnn_jax.data.drawn import check_drawn, drawn_source
from cnn_jax.data.source import SPLITS, ArraySource, uniform_draws

GREY_PER_DEVIATION = 36  # the grey levels 0..255 hold 3.5 deviations either way
MEANS, ORDER = 3, 4  # streams of draws, after the splits'


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The rows of one split: image (size_px, size_px, 1) uint8, 128 for an average measurement, and label int32.

      config.size_px          the side of the picture; its square is the number of columns
      config.num_classes      at least 2
      config.separation       of the classes' means in a column, in deviations
      config.shuffle_columns  whether the columns are exchanged, in an order drawn from the seed
      config.num_train, config.num_validation, config.num_test, config.data_seed   whole numbers

    Raises:
      ValueError: an unknown split, or a value out of range.
    """
    check_drawn(config, split, at_least_1=["size_px"], not_negative=["separation"])
    if config.num_classes < 2:
        raise ValueError(f"config.data.num_classes={config.num_classes}: must be at least 2")
    classes = [f"class {label}" for label in range(config.num_classes)]
    return drawn_source("tabular", classes, split, lambda split: _draw_split(config, split))


def _draw_split(config: ConfigDict, split: str) -> dict[str, np.ndarray]:
    from scipy.special import ndtri

    n, columns, stream = config[f"num_{split}"], config.size_px**2, SPLITS.index(split)
    label = np.arange(n, dtype=np.int32) % config.num_classes
    mean = config.separation * (2 * uniform_draws(config.data_seed, MEANS, config.num_classes, columns) - 1)
    noise = ndtri(uniform_draws(config.data_seed, stream, n, columns) + 2.0**-54)  # a draw may be 0
    # Rounded from just short of a half, where the last bit of a logarithm would decide.
    table = np.floor(np.clip(128 + GREY_PER_DEVIATION * (mean[label] + noise), 0, 255) + 0.500001).astype(np.uint8)
    if config.shuffle_columns:
        table = table[:, np.argsort(uniform_draws(config.data_seed, ORDER, 1, columns)[0], kind="stable")]
    return {"image": table.reshape(n, config.size_px, config.size_px, 1), "label": label}
