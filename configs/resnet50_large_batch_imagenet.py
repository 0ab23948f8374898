"""ResNet-50 on ImageNet in 90 epochs at any batch, by linear scaling and gradual warm-up.

Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, https://arxiv.org/abs/1706.02677: sections
2.1 and 2.2 the rate 0.1 for 256 pictures, in proportion to the batch, reached from 0.1 in 5 epochs; 5.1 momentum 0.9, decay
1e-4 of all but batch normalisation, the rate divided by 10 after 30, 60 and 80 epochs, the last normalisation of each block
beginning at 0; random-resized crops, mirrored.

    ./launch.sh train configs/resnet50_large_batch_imagenet.py --config.data.dir=DIR --workdir=runs/resnet50_goyal
    ./launch.sh train configs/resnet50_large_batch_imagenet.py:batch=8192,parts=8 --config.data.dir=DIR --workdir=runs/r50_8k

Published: validation set, centre crop, top-1 error, mean of five (table 1, recalled): 23.60% at 256, 23.74% at 8192.
Cost: 90 epochs, 25 GFLOP a picture: 5 hours of one H200 at the 6,500 pictures a second that are aimed at, 13 hours of one
A100 at 2,500.
Not run here.

The paper normalises each GPU's 32 pictures by themselves; here a batch, or each of the `parts` that it is taken in, is
normalised as a whole. Its normalisation keeps 0.9 of the old, as this. Biases, of which there is only the last layer's,
do not decay here. The paper's colour augmentation (fb.resnet.torch's) is left out.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    args = parse(arg, batch=256, parts=1)
    config = base()
    config.model.name, config.model.variant, config.model.dtype = "models.resnet", "50-v1.5", "bfloat16"
    config.model.overrides = dict(zero_init_residual=True)
    config.data = pictures("data.imagenet", num_validation=10_000)
    config.augment.flip = "random"
    config.batch_size, config.accumulate_steps = args.batch, args.parts
    config.num_epochs = 90
    config.optim.update(
        lr=0.1 * args.batch / 256,
        weight_decay=1e-4,
        schedule="step",
        step_epochs=(30, 60, 80),
        warmup_epochs=5.0,
        warmup_start_factor=min(1.0, 256 / args.batch),
    )
    config.log.every_steps = 100
    return config
