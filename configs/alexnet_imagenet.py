"""AlexNet on ImageNet, as its paper trained it.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012: section 4.1 squares out
of pictures of short side 256, mirrored, lighting changed; 4.2 dropout; 5 batch 128, momentum 0.9, decay 5e-4, weights
drawn with deviation 0.01, biases of 1, rate 0.01 divided by 10 when the validation error no longer falls, about 90 epochs.

    ./launch.sh train configs/alexnet_imagenet.py --config.data.dir=DIR --workdir=runs/alexnet

Published: one network, validation set, mean over ten crops (section 6): 40.7% top-1 and 18.2% top-5 error. Caffe's
AlexNet, centre crop: 57.1% and 80.2% right (BVLC/caffe, models/bvlc_alexnet/readme.md).
Cost: 890,000 steps of 128, 4.3 GFLOP a picture: 5 to 10 hours of a GPU that is fed 4,000 to 6,000 pictures a second; the
paper's two GTX 580 took five to six days.
Not run here.

Where the paper does not say, or says otherwise: biases learn twice as fast and do not decay, as in Caffe's AlexNet; "no
longer falls" is 5 epochs; training squares lie anywhere in the picture, the paper's within its middle 256x256. Caffe found
biases of 1 too much and took 0.1 (same readme).
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    variant = parse(arg, variant="two-tower").variant
    config = base()
    config.model.name, config.model.variant = "models.alexnet", variant
    config.data = pictures(
        "data.imagenet",
        num_validation=10_000,
        image_px=227,
        crop="scale_jitter",
        short_side_range_px=(256, 256),
        eval_image_px=256,
        std=(1 / 255,) * 3,  # levels of 0 to 255 less their mean: what the deviation of 0.01 is meant for
    )
    config.augment.update(flip="random", lighting_std=0.1)
    config.eval = dict(every_epochs=1.0, batch_size=256, views="ten", view_px=227)
    config.batch_size = 128
    config.num_epochs = 90
    config.optim.update(
        lr=0.01,
        momentum_form="alexnet",
        weight_decay=5e-4,
        groups=((".*/bias", 2.0, 0.0),),
        schedule="plateau",
        plateau_patience_evals=5,
    )
    config.log.every_steps = 500
    return config
