"""A small ResNet on Tiny-ImageNet (64x64, 200 classes or some of them), from JPEG files, for runs of an hour or less.

    ./launch.sh train configs/resnet_tiny_imagenet.py --config.data.dir=DIR --workdir=runs/resnet20_tiny
    ./launch.sh train configs/resnet_tiny_imagenet.py:cifar32,epochs=60 --config.data.dir=DIR --workdir=runs/resnet32_tiny

No paper's recipe: CIFAR's networks (He et al. 2016, section 4.2) on four times the pixels, with SGD, cosine, random-resized
crops, mirroring and smoothed labels. Nothing is published to compare with: other work trains larger networks on all of the
200 classes.
Cost: 0.97 GFLOP a picture for 20 layers; 20,000 pictures (40 classes) for 30 epochs: an hour or two of two cores, a minute
or two of a GPU.
Not run here, but where experiments/results/ has a record.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    args = parse(arg, variant="cifar20", epochs=30.0)
    config = base()
    config.model.name, config.model.variant = "models.resnet", args.variant
    config.data = pictures(
        "data.tiny_imagenet",
        num_validation=2000,
        image_px=64,
        area_range=(0.35, 1.0),
        eval_resize_px=64,
        eval_image_px=64,
    )
    config.augment.flip = "random"
    config.batch_size = 128
    config.num_epochs = args.epochs
    config.label_smoothing = 0.1
    config.optim.update(lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=1.0)
    config.log.every_steps = 50
    return config
