"""LeNet-5, or the X/O network, on drawn pictures of X and O: moved, scaled, turned, heavier. Seconds on a laptop.

./launch.sh train configs/xo.py --workdir=runs/lenet_xo
./launch.sh train configs/xo.py:xonet --workdir=runs/xonet_xo
"""

from configs.common import base, parse


def get_config(arg=None):
    network = parse(arg, network="lenet").network
    config = base()
    config.model.name = f"models.{network}"
    config.model.variant = {"lenet": "modern", "xonet": "drawn"}.get(network, "")
    config.data = dict(
        name="data.xo",
        data_seed=0,
        size_px=32,
        num_train=1000,
        num_validation=200,
        num_test=500,
        max_shift_px=4.0,
        max_rotation_deg=30.0,
        scale_range=(0.6, 1.2),
        stroke_px=(1.0, 4.0),
    )
    config.batch_size = 50
    config.num_epochs = 10
    config.optim.lr = 0.02
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.5
    return config
