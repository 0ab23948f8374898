"""ResNet-50 on ImageNet by torchvision's second recipe, IMAGENET1K_V2.

V. Vryniotis, "How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives", 2021,
https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives/: SGD at 0.5 for batch
1024, cosine after 5 epochs of warm-up, 600 epochs, decay 2e-5 but of normalisation, smoothing 0.1, mixup 0.2, CutMix 1,
TrivialAugment, random erasing 0.1, moving average, four copies of a picture in a batch, each augmented by itself (an epoch
stays as long), 176 pixels for training and 224 of 232 for evaluation.

    ./launch.sh train configs/resnet50_torchvision_imagenet.py --config.data.dir=DIR --workdir=runs/resnet50_tv2

Published: validation set, moving average, centre crop: 80.858% top-1, 95.434% top-5; an earlier version of the page has
80.674% and 95.166%.
Cost: 600 epochs, 15 GFLOP a picture at 176 pixels: 20 to 35 hours of one H200 at 10,000 to 6,000 pictures a second.
Not run here.

Departures: the rate changes every step, there every epoch; each picture has its own share and either mixup or CutMix.
Recalled: the settings, from the
page's command. The average there is taken every 32 steps and keeps 1 - 2e-5 x 1024 x 32 / 600 of the old, so 0.99997 a step.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    parse(arg)
    config = base()
    config.model.name, config.model.variant, config.model.dtype = "models.resnet", "50-v1.5", "bfloat16"
    config.data = pictures("data.imagenet", num_validation=10_000, image_px=176, eval_resize_px=232, repeats=4)
    config.augment.update(flip="random", policy="trivial_wide", erasing_probability=0.1, erased_fill="mean")
    config.augment.update(mixup_alpha=0.2, cutmix_alpha=1.0)
    config.batch_size = 1024
    config.num_epochs = 600
    config.label_smoothing = 0.1
    config.optim.update(
        lr=0.5,
        weight_decay=2e-5,
        groups=(("fc/bias", 1.0, 1.0),),  # all but normalisation decays
        schedule="cosine",
        warmup_epochs=5.0,
        warmup_start_factor=0.01,
        ema_decay=0.99997,
    )
    return config
