"""ZFNet on ImageNet, as its paper trained it.

Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 3: short side 256, 224x224
squares, mirrored; batch 128, rate 0.01, momentum 0.9, annealed by hand when the validation error no longer falls; weights
of deviation 0.01, biases 0; 70 epochs.

    ./launch.sh train configs/zfnet_imagenet.py --config.data.dir=DIR --workdir=runs/zfnet
    ./launch.sh train configs/zfnet_imagenet.py:table-2b --config.data.dir=DIR --workdir=runs/zfnet_2b

Published: one network, validation set, mean over ten crops (table 2): 38.4% top-1 and 16.5% top-5 error; "table-2b", layers
3, 4, 5 of 512, 1024, 512 maps: 37.5% and 16.0% (these two recalled).
Cost: 695,000 steps of 128, 7 GFLOP a picture: 5 to 10 hours of a GPU that is fed 2,500 to 5,000 pictures a second; the
paper's GTX 580 took twelve days.
Not run here.

Where the paper does not say, or says otherwise: decay 5e-4 as in AlexNet, whose training it follows; "no longer falls" is 5
epochs; squares lie anywhere, the paper's in the four corners and the middle; filters of conv1 whose root mean square
exceeds 0.1 are not scaled back to it.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    variant = parse(arg, variant="figure-3").variant
    config = base()
    config.model.name, config.model.variant = "models.zfnet", variant
    config.data = pictures(
        "data.imagenet",
        num_validation=10_000,
        crop="scale_jitter",
        short_side_range_px=(256, 256),
        eval_image_px=256,
        std=(1 / 255,) * 3,  # levels of 0 to 255 less their mean: what the deviation of 0.01 is meant for
    )
    config.augment.flip = "random"
    config.eval = dict(every_epochs=1.0, batch_size=256, views="ten", view_px=224)
    config.batch_size = 128
    config.num_epochs = 70
    config.optim.update(
        lr=0.01, momentum_form="alexnet", weight_decay=5e-4, schedule="plateau", plateau_patience_evals=5
    )
    config.log.every_steps = 500
    return config
