"""LeNet-5 on MNIST (LeCun et al. 1998, section III: 60,000 pictures, distorted by small planar affine maps; 0.8% error).

    ./launch.sh train configs/lenet_mnist.py --config.data.dir=MNIST --workdir=runs/lenet_mnist

MNIST holds the four idx files, compressed or not. 5,000 of the 60,000 are held out for validation.
"""

from configs.common import base, parse


def get_config(arg=None):
    parse(arg)
    config = base()
    config.model.name = "models.lenet"
    config.model.variant = "modern"
    config.data = dict(name="data.mnist", dir="", num_validation=5000)
    config.batch_size = 128
    config.num_epochs = 12
    config.optim.lr = 0.05
    config.optim.weight_decay = 5e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 1.0
    config.augment.update(max_shift_px=2.0, max_rotation_deg=10.0, scale_range=(0.9, 1.1))
    config.log.every_steps = 100
    return config
