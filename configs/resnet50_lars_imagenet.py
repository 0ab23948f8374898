"""ResNet-50 v1.5 on ImageNet at a large batch by LARS, as in MLPerf Training.

You et al., "Large Batch Training of Convolutional Networks", 2017, https://arxiv.org/abs/1708.03888; the settings of
submissions to MLPerf 1.0 (mlcommons/training_results_v1.0, Supermicro, resnet, config_DGXA100_2x8x204.sh: rate 10.5 for
3,264 pictures, warm-up 2 epochs, then quadratically to 0 at 37, decay 5e-5, momentum 0.9, smoothing 0.1, eta 0.001), for
batch 3200 at rate 11, as later ones have it.

    ./launch.sh train configs/resnet50_lars_imagenet.py --config.data.dir=DIR --workdir=runs/resnet50_lars

--config.accumulate_steps=4 takes a batch in four parts of 800.
Published: the first evaluation of the validation set, centre crop, at 75.9% or above stops the clock; 76.07% after 36 epochs
on eight H200 (NVIDIA, MLPerf 4.0).
Cost: 37 epochs, 25 GFLOP a picture: 2 hours of one H200 at the 6,500 pictures a second that are aimed at.
Not run here.

Batch normalisation and biases neither decay nor have a rate of their own. MLPerf ends the rate at 1e-4 and not at 0, and
normalises groups of GPUs by themselves; its crops keep at least 5% of the picture (recalled).
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    parse(arg)
    config = base()
    config.model.name, config.model.variant, config.model.dtype = "models.resnet", "50-v1.5", "bfloat16"
    config.model.overrides = dict(zero_init_residual=True)
    config.data = pictures("data.imagenet", num_validation=10_000, area_range=(0.05, 1.0))
    config.augment.flip = "random"
    config.batch_size = 3200
    config.num_epochs = 37
    config.label_smoothing = 0.1
    config.optim.update(
        name="lars",
        lr=11.0,
        momentum_form="alexnet",
        weight_decay=5e-5,
        schedule="poly",
        poly_power=2.0,
        warmup_epochs=2.0,
    )
    return config
