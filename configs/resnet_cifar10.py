"""Residual networks and their plain twins on CIFAR-10, as their paper trained them, or by a shorter schedule.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: 45,000 pictures for training, 5,000 for
validation; batch 128, momentum 0.9, decay 1e-4, rate 0.1, divided by 10 after 32,000 and 48,000 steps, 64,000 steps; pad 4,
crop 32x32, mirror. 110 layers begin at 0.01, for some 400 steps.

    ./launch.sh train configs/resnet_cifar10.py:20 --config.data.dir=DIR --workdir=runs/resnet20
    ./launch.sh train configs/resnet_cifar10.py:110 --config.data.dir=DIR --workdir=runs/resnet110
    ./launch.sh train configs/resnet_cifar10.py:56-plain --config.data.dir=DIR --workdir=runs/plain56
    ./launch.sh train configs/resnet_cifar10.py:20,epochs=30 --config.data.dir=DIR --workdir=runs/resnet20_short

epochs: the same divided at a half and three quarters of so many epochs; without it the paper's 64,000 steps.
Published: test error (table 6; 110: best of five, 6.61 +- 0.16): 20 8.75%, 32 7.51, 44 7.17, 56 6.97, 110 6.43, 1202 7.93.
The re-implementation akamaster/pytorch_resnet_cifar10: 8.27, 7.37, 6.90, 6.61, 6.32, 6.18. Plain networks,
by another re-implementation: 20 9.9%, 32 13.0, 44 15.6, 56 14.7.
Cost: 0.24 GFLOP a picture for 20 layers, 8.2 million pictures: minutes of a GPU; an hour or two of two cores for 30 epochs.
Not run here, but where experiments/results/ has a record. Lossy copies of the pictures give other errors.

The paper subtracts the mean of each pixel, this that of each channel; padding is of the mean, which is 0 then.
"""

from configs.common import base, parse

STEPS_PER_EPOCH = 45_000 // 128


def get_config(arg=None):
    args = parse(arg, depth="20", epochs=0.0)
    config = base()
    config.model.name, config.model.variant = "models.resnet", f"cifar{args.depth}"
    config.data = dict(name="data.cifar10", dir="", num_validation=5000)
    config.augment.update(crop_padding_px=4, flip="random", fill="mean")
    config.batch_size = 128
    config.num_epochs = args.epochs or 64_000 / STEPS_PER_EPOCH
    config.optim.update(lr=0.1, momentum_form="alexnet", weight_decay=1e-4, schedule="step")
    config.optim.step_epochs = (config.num_epochs / 2, config.num_epochs * 3 / 4)
    if args.depth.startswith("110"):
        config.optim.update(warmup_epochs=400 / STEPS_PER_EPOCH, warmup_form="constant", warmup_start_factor=0.1)
    config.log.every_steps = 100
    return config
