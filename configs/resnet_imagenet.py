"""Residual networks on ImageNet, as their paper trained them: its bag of tricks.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.4: batch normalisation after every
convolution, He's initialisation, SGD of rate 0.1, momentum 0.9 and batch 256, the rate divided by 10 when the error stands
still, decay 1e-4, 600,000 steps, no dropout; 224x224 squares out of pictures of short side 256..480, mirrored, AlexNet's
change of light.

    ./launch.sh train configs/resnet_imagenet.py:50 --config.data.dir=DIR --workdir=runs/resnet50
    ./launch.sh train configs/resnet_imagenet.py:34-plain --config.data.dir=DIR --workdir=runs/plain34

Published: validation set, mean over ten crops, top-1 and top-5 error (tables 2 and 3, recalled): 18 27.88; 34 24.52, 7.46
(shortcut B); 50 22.85, 6.71; 101 21.75, 6.05; 152 21.43, 5.71; plain 18 and 34 27.94 and 28.54. By centre crop, the authors'
networks: 50 24.7, 7.8; 101 23.6, 7.1; 152 23.0, 6.7.
Cost: 600,000 steps of 256, 121 epochs; 23 GFLOP a picture for 50 layers: 10 to 25 hours of a GPU that is fed 1,800 to 4,000
pictures a second.
Not run here.

Where the paper does not say, or says otherwise: "stands still" is 5 epochs; of kernels alone the decay (as
facebookarchive/fb.resnet.torch reads it, which decays all); each channel's mean is taken off, not each pixel's. The forms
of batch normalisation, and -v1.5: models/resnet.py.
"""

from configs.common import base, parse, pictures

STEPS_PER_EPOCH = (1_281_167 - 10_000) // 256


def get_config(arg=None):
    variant = parse(arg, variant="50").variant
    config = base()
    config.model.name, config.model.variant = "models.resnet", variant
    config.data = pictures(
        "data.imagenet",
        num_validation=10_000,
        crop="scale_jitter",
        short_side_range_px=(256, 480),
        eval_image_px=256,
    )
    config.augment.update(flip="random", lighting_std=0.1)
    config.eval = dict(every_epochs=1.0, batch_size=256, views="ten", view_px=224)
    config.batch_size = 256
    config.num_epochs = 600_000 / STEPS_PER_EPOCH
    config.optim.update(
        lr=0.1, momentum_form="alexnet", weight_decay=1e-4, schedule="plateau", plateau_patience_evals=5
    )
    config.log.every_steps = 200
    return config
