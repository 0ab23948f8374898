"""BiT-S, a ResNet-v2 with group normalisation and standardised weights, on ImageNet, as its paper pre-trained it.

Kolesnikov et al., "Big Transfer (BiT): General Visual Representation Learning", ECCV 2020, section 3.1 (recalled):
momentum 0.9, rate 0.03 for 256 pictures, in proportion to the batch of 4096, warm-up of 5,000 steps, divided by 10 after
30, 60 and 80 of 90 epochs, decay 1e-4; Inception crops, mirrored.

    ./launch.sh train configs/bit_imagenet.py:R50x1 --config.data.dir=DIR --workdir=runs/bit_r50x1
    ./launch.sh train configs/bit_imagenet.py:R50x1,batch=512 --config.data.dir=DIR --workdir=runs/bit_r50x1_512

Published: after fine-tuning at higher resolution only (80.0% top-1 for R50x1 from ImageNet-21k, recalled); of this stage no
figure is known here. google-research/big_vision, configs/bit_i1k.py, trains a ResNet-50 normalised so in 90 epochs with
cosine, 0.1 for 256 and gradients clipped to norm 1, in 32 minutes of a TPU v3-128: cosine=true is that schedule, but for its
decay, which is of the weights themselves there, 1e-3 of the rate, about what 1e-4 under momentum comes to.
Cost: 90 epochs, 25 GFLOP a picture: 5 hours or more of one H200. Nothing is normalised over the batch, so that
--config.accumulate_steps=8 changes nothing but the memory.
Not run here.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    args = parse(arg, variant="R50x1", batch=4096, cosine=False)
    config = base()
    config.model.name, config.model.variant, config.model.dtype = "models.bit", args.variant, "bfloat16"
    config.data = pictures("data.imagenet", num_validation=10_000)
    config.augment.flip = "random"
    config.batch_size = args.batch
    config.num_epochs = 90
    steps_per_epoch = (1_281_167 - 10_000) // args.batch
    config.optim.update(
        lr=(0.1 if args.cosine else 0.03) * args.batch / 256,
        weight_decay=1e-4,
        clip_norm=1.0 if args.cosine else 0.0,
        schedule="cosine" if args.cosine else "step",
        step_epochs=(30, 60, 80),
        warmup_epochs=(1000 if args.cosine else 5000) / steps_per_epoch,
    )
    return config
