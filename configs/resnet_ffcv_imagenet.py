"""ResNet-18 and ResNet-50 on ImageNet in 16 to 88 epochs, after ffcv.

https://github.com/libffcv/ffcv-imagenet, rn18_configs and rn50_configs: the rate rises to its height in two epochs and falls
to 0, both linearly; momentum 0.9, smoothing 0.1, blurring before strided convolutions, random-resized crops at 160 and later
192 pixels, mirrored; evaluated at 256.

    ./launch.sh train configs/resnet_ffcv_imagenet.py:18,epochs=16 --config.data.dir=DIR --workdir=runs/rn18_ffcv16
    ./launch.sh train configs/resnet_ffcv_imagenet.py:50,epochs=40 --config.data.dir=DIR --workdir=runs/rn50_ffcv40

Published: validation set, 256 pixels out of the middle 7/8, logits of picture and mirror image added, top-1 (README.md):
  epochs       16    24    32    40    56    88
  ResNet-18   66.9  68.8  70.0  70.6  71.3  72.4    35 to 187 minutes of one A100
  ResNet-50   73.8  75.6  76.6  77.2  78.0  78.4    15 to 77 minutes of eight A100
Cost: 16 epochs are 20 million pictures: half an hour for ResNet-18, of a GPU that is fed 10,000 a second, an hour for
ResNet-50 of one H200 at the 6,500 a second that are aimed at.
Not run here.

Pictures grow to 192 at 0.75 to 0.81 of the epochs, as there; at 0.8 of other numbers. Batches are 1024, and 4096 as eight
GPUs of 512 make; --config.accumulate_steps takes them in parts. Departures: evaluation takes the mean of probabilities, not
of logits; ffcv's pictures are reduced beforehand, the longer side to 400 (ResNet-18) or 500.
"""

from configs.common import base, parse, pictures

# The first epoch of 192 pixels: ffcv's sizes rise from start_ramp to end_ramp, rounded to multiples of 32.
GROWTH = {16: 12, 24: 19, 32: 25, 40: 32, 56: 45, 88: 71}


def get_config(arg=None):
    args = parse(arg, depth="18", epochs=16.0)
    config = base()
    is_18 = args.depth == "18"
    config.model.name, config.model.variant = "models.resnet", "18" if is_18 else f"{args.depth}-v1.5"
    config.model.dtype = "bfloat16"
    config.model.overrides = dict(use_blur_pool=True)
    config.data = pictures(
        "data.imagenet",
        num_validation=10_000,
        image_px=160,
        size_epochs=((GROWTH.get(args.epochs, 0.8 * args.epochs), 192),),
        eval_resize_px=293,
        eval_image_px=256,
    )
    config.augment.flip = "random"
    config.eval = dict(every_epochs=1.0, batch_size=512, views="dense", view_scales_px=(256,))  # and mirrored
    config.batch_size = 1024 if is_18 else 4096
    config.num_epochs = args.epochs
    config.label_smoothing = 0.1
    config.optim.update(
        lr=0.5 if is_18 else 1.7,
        weight_decay=5e-5 if is_18 else 1e-4,
        groups=(
            (".*/shortcut_bn/.*|fc/bias", 1.0, 1.0),
        ),  # what the code, going by "bn" in torchvision's names, decays
        schedule="linear",
        warmup_epochs=2.0,
        warmup_start_factor=1e-4,
    )
    return config
