"""ResNet-50 v1.5 on ImageNet by NVIDIA's baseline: cosine, smoothed labels, little decay; 90 epochs, or 250 with mixup.

NVIDIA DeepLearningExamples, ResNet50 v1.5, https://catalog.ngc.nvidia.com/orgs/nvidia/teams/dle/resources/resnet_pyt:
momentum 0.875, rate 0.256 for 256 pictures, in proportion to the batch, linear warm-up of 8 epochs, cosine, decay 1/32768
but of batch normalisation, smoothing 0.1; for 250 epochs mixup of 0.2, too (PyTorch/Classification/ConvNets/configs.yml).

    ./launch.sh train configs/resnet50_nvidia_imagenet.py --config.data.dir=DIR --workdir=runs/resnet50_nvidia
    ./launch.sh train configs/resnet50_nvidia_imagenet.py:epochs=250 --config.data.dir=DIR --workdir=runs/resnet50_nvidia250

Published: validation set, centre crop, top-1: 77.1% after 90 epochs, 78.4% after 250, on 8 A100.
Cost: 90 epochs, 25 GFLOP a picture: 5 hours of one H200 at the 6,500 pictures a second that are aimed at, 13 hours of one
A100 at 2,500.
Not run here.

The batch of 2048 is that of 8 GPUs; at 1024 decay is 1/16384 there (for two other networks). The bias of the last layer does
not decay here.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    args = parse(arg, epochs=90.0, batch=2048)
    config = base()
    config.model.name, config.model.variant, config.model.dtype = "models.resnet", "50-v1.5", "bfloat16"
    config.data = pictures("data.imagenet", num_validation=10_000)
    config.augment.update(flip="random", mixup_alpha=0.2 if args.epochs > 90 else 0.0)
    config.batch_size = args.batch
    config.num_epochs = args.epochs
    config.label_smoothing = 0.1
    config.optim.update(
        lr=0.256 * args.batch / 256,
        momentum=0.875,
        weight_decay=1 / 32768,
        schedule="cosine",
        warmup_epochs=8.0,
    )
    return config
