"""VoxNet tells balls, cubes, cylinders and crosses in 16x16x16 voxels, anywhere and any way round, in noise.

./launch.sh train configs/cnn3d_voxels.py --workdir=runs/cnn3d_voxels

99.5% of the test split on average, 99.2 to 99.8% (seeds 0 to 4); under three minutes of CPU.
"""

from configs.common import base, parse


def get_config(arg=None):
    parse(arg)
    config = base()
    config.model.name = "models.cnn3d"
    config.model.variant = "voxnet16"
    config.data = dict(
        name="data.voxels",
        data_seed=0,
        num_train=4000,
        num_validation=1000,
        num_test=1000,
        size_voxels=16,
        radius_voxels=(3.5, 4.8),
        max_shift_voxels=1.6,
        noise=0.02,
    )
    config.batch_size = 64
    config.num_epochs = 15
    config.optim.lr = 0.01
    config.optim.weight_decay = 1e-3  # Maturana & Scherer 2015, Network Training
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.5
    return config
