"""cnn_jax: convolutional networks for research, in JAX and Flax. Start at `train.py`, or with `./launch.sh --help`."""
