"""GoogLeNet on ImageNet, as its paper trained it, with the two auxiliary classifiers.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015: section 5, the auxiliary losses weighted by 0.3; section 6,
momentum 0.9, the rate 4% less every 8 epochs, Polyak averaging for the final network, crops of 8% to 100% of the area and
of aspect 3/4 to 4/3, photometric distortions.

    ./launch.sh train configs/googlenet_imagenet.py --config.data.dir=DIR --workdir=runs/googlenet
    ./launch.sh train configs/googlenet_imagenet.py:bn-aux --config.data.dir=DIR --workdir=runs/googlenet_bn

Published: one network, validation set, top-5 error (table 3, recalled): 10.07% by one crop, 9.15% by ten, 7.89% by 144.
Caffe's, of 60 epochs, centre crop: 68.7% and 88.9% right (BVLC/caffe, models/bvlc_googlenet/readme.md).
Cost: 250 epochs, 10 GFLOP a picture: 30 to 60 hours of a GPU that is fed 1,500 to 3,000 pictures a second.
epochs=60,poly=true is Caffe's quicker schedule.
Not run here.

The paper leaves open: batch, rate, decay and length; they are Caffe's (solver.prototxt: 0.01 for batches of 32, 2e-4; ten
million steps, 250 epochs; quick_solver.prototxt, recalled: power 0.5). The batch is 128 here, at the same rate, since the
paper's was asynchronous. Biases as in Caffe. The average keeps 0.9999 a step; the distortions are of 0.4 each (Howard 2013,
recalled). Evaluation is by centre crop.
"""

from configs.common import base, parse, pictures


def get_config(arg=None):
    args = parse(arg, variant="paper-aux", epochs=250.0, poly=False)
    config = base()
    config.model.name, config.model.variant = "models.googlenet", args.variant
    config.data = pictures("data.imagenet", num_validation=10_000)
    config.augment.update(flip="random", brightness=0.4, contrast=0.4, saturation=0.4, lighting_std=0.1)
    config.batch_size = 128
    config.num_epochs = args.epochs
    config.aux_weight = 0.3
    config.optim.update(
        lr=0.01,
        momentum_form="alexnet",
        weight_decay=2e-4,
        groups=((".*/bias", 2.0, 0.0),),
        schedule="poly" if args.poly else "exponential",
        poly_power=0.5,
        step_every_epochs=8.0,
        step_factor=0.96,
        ema_decay=0.9999,
    )
    config.log.every_steps = 500
    return config
