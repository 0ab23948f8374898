"""VGG on ImageNet, as its paper trained it; with batch normalisation by the variants A-BN to E-BN.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, section 3.1: batch
256, momentum 0.9, decay 5e-4, dropout 0.5, rate 0.01 divided by 10 when the validation accuracy stands still (three times),
74 epochs; 224x224 squares out of pictures of short side S, mirrored, AlexNet's change of light.

    ./launch.sh train configs/vgg_imagenet.py:D --config.data.dir=DIR --workdir=runs/vgg_d
    ./launch.sh train configs/vgg_imagenet.py:D,jitter=true --config.data.dir=DIR --workdir=runs/vgg_d_jitter
    ./launch.sh train configs/vgg_imagenet.py:D-BN --config.data.dir=DIR --workdir=runs/vgg_d_bn

jitter: S anew for each picture, in 256..512; else 256 throughout.
Published: one network, one scale, validation set, dense evaluation of the whole picture (table 3, most of it recalled),
top-1 and top-5 error, in brackets with jitter: A 29.6, 10.4; B 28.7, 9.9; C 28.1, 9.4 (27.3, 8.8); D 27.0, 8.8 (25.6, 8.1);
E 27.3, 9.0 (25.5, 8.0). torchvision's, centre crop: 11, 13, 16, 19 layers 69.0, 69.9, 71.6, 72.4% right; with BN 70.4,
71.6, 73.4, 74.2%.
Cost: 367,000 steps of 256; 93 GFLOP a picture for D: 30 to 60 hours of a GPU that is fed 450 to 900 pictures a second;
--config.accumulate_steps=4 where a batch does not fit. The paper's four Titan Black took two to three weeks.
Not run here.

Where the paper does not say, or says otherwise: "stands still" is 4 epochs; networks begin by Glorot's rule, which the paper
found to do; evaluation is of ten crops at short side 256 (jitter: 384), for the fully connected layers are no convolutions
here. Without BN the first epochs are slow: see models/vgg.py.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    args = parse(arg, variant="D", jitter=False)
    config = base()
    config.model.name, config.model.variant = "models.vgg", args.variant
    short_side_px = 384 if args.jitter else 256
    config.data = pictures(
        "data.imagenet",
        num_validation=10_000,
        crop="scale_jitter",
        short_side_range_px=(256, 512) if args.jitter else (256, 256),
        eval_resize_px=short_side_px,
        eval_image_px=short_side_px,
        std=(1 / 255,) * 3,  # levels of 0 to 255 less their mean (section 2.1)
    )
    config.augment.update(flip="random", lighting_std=0.1)
    config.eval = dict(every_epochs=1.0, batch_size=128, views="ten", view_px=224)
    config.batch_size = 256
    config.num_epochs = 74
    config.optim.update(
        lr=0.01, momentum_form="alexnet", weight_decay=5e-4, schedule="plateau", plateau_patience_evals=4
    )
    config.log.every_steps = 200
    return config
