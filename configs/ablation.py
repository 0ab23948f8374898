"""A small network to take apart, on small pictures, in seconds: what the experiments on single choices start from.

    ./launch.sh train configs/ablation.py --workdir=runs/convnet_digits
    ./launch.sh train configs/ablation.py:textures --workdir=runs/average --config.model.overrides.pool=average
    ./launch.sh train configs/ablation.py:digits,network=mlp --workdir=runs/mlp --config.model.overrides.hidden="(20,20)"
    ./launch.sh train configs/ablation.py:textures,network=resnet,variant=cifar20-plain --workdir=runs/plain20
    ./launch.sh train configs/ablation.py:cifar10 --config.data.of.dir=DIR --workdir=runs/convnet_cifar10

| choice               | --config.model.overrides. of the convnet                                               |
|----------------------|----------------------------------------------------------------------------------------|
| activation           | activation=relu, leaky_relu, elu, maxout, sigmoid, tanh; activates_between=true, false |
| normalisation        | norm=none, batch, group, lrn                                                           |
| shortcut             | shortcut=none, A, B                                                                    |
| kernel factorisation | kernel_sizes="(5,)", "(3,3)"; reduction=N                                              |
| pooling              | pool=max, average, blur, stride, none                                                  |
| first layer          | stem_width=N, stem_kernel=7, stem_stride=2                                             |
| head                 | head=flatten, gap; hidden=N                                                            |
| dropout              | dropout_rate=0.5                                                                       |
| initialiser          | initializer=he_normal, glorot_normal, alexnet_normal, vgg_normal                       |
| dilation             | dilation=2                                                                             |
| depth and width      | kernel_sizes="(3,3,3)"; widths="(8,16,32)"                                             |
| shared weights       | connection=shared, local, full; mode=wrap                                              |

Augmentation is --config.augment.KEY, e.g. crop_padding_px=2. Digits are 8x8 in the middle of 16x16; textures 16x16 in noise.
"""

from configs.common import base, parse


def altered(of, crop_px):
    """`of`, whole and in order, and ready to be altered: fewer training pictures, the middle of each, pixels permuted."""
    return dict(name="data.altered", of=of, crop_px=crop_px, num_train=0, draw_seed=0, permute_seed=-1)


def get_config(arg=None):
    args = parse(arg, data="digits", network="convnet", variant="")
    config = base()
    config.model.name = f"models.{args.network}"
    config.model.variant = args.variant or {"convnet": "small", "mlp": "mnist", "resnet": "cifar20"}.get(
        args.network, ""
    )
    config.batch_size, config.num_epochs = 50, 30
    if args.data == "textures":
        config.data = dict(
            name="data.textures",
            data_seed=0,
            size_px=16,
            num_train=1000,
            num_validation=500,
            num_test=1000,
            period_px=(3.0, 8.0),
            contrast_range=(0.3, 1.0),
            max_tilt_deg=15.0,
            noise=20.0,
        )
    elif args.data == "cifar10":
        config.data = altered(of=dict(name="data.cifar10", dir="", num_validation=5000), crop_px=0)
        config.augment.update(crop_padding_px=4, flip="random", fill="mean")
        config.batch_size = 128
        config.optim.weight_decay = 5e-4
        if args.network == "convnet":
            config.model.variant = args.variant or "cifar"
    else:
        config.data = altered(of=dict(name=f"data.{args.data}", digit_px=8), crop_px=16)
    # Without a limit to the gradient small networks of ReLUs die at rates at which others learn best.
    config.optim.update(lr=0.1, clip_norm=1.0, schedule="cosine", warmup_epochs=5.0)
    config.eval.every_epochs = 10.0
    config.checkpoint.every_epochs = 1000.0  # at the end alone, and where a validation is the best yet
    config.log.update(every_steps=20, use_tensorboard=False)
    return config
