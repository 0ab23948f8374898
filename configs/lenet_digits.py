"""LeNet-5 on the 1,797 handwritten digits that scikit-learn ships: what `./launch.sh` runs.

./launch.sh train configs/lenet_digits.py --workdir=runs/lenet_digits --config.seed=1
"""

from configs.common import base, parse


def get_config(arg=None):
    parse(arg)
    config = base()
    config.model.name = "models.lenet"
    config.model.variant = "modern"
    config.data = dict(name="data.digits", digit_px=28)
    config.batch_size = 64
    config.num_epochs = 100
    config.optim.lr = 0.05
    config.optim.weight_decay = 5e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 1.0
    config.augment.update(max_shift_px=2.0, max_rotation_deg=15.0, max_shear_deg=10.0, scale_range=(0.85, 1.15))
    config.eval.every_epochs = 4.0
    config.checkpoint.every_epochs = 10.0
    return config
