"""What every recipe starts from: `base()` names each field of a run and its default; a recipe says what differs.

Fields carry their units. No field is derived from another: what follows from several is worked out when the run starts.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The defaults. A recipe must name its model and its data."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 128  # over all devices
    config.accumulate_steps = 1  # a step takes its batch in so many parts, one after another, and updates once
    config.num_epochs = 10.0
    config.task = "classification"
    config.loss = "softmax"  # softmax | sigmoid: one choice among the classes, or yes or no to each
    config.label_smoothing = 0.0
    config.label_threshold = 0.0  # sigmoid: of mixed pictures, classes of a larger share count as wholly there; 0: off
    config.loss_reduction = (
        "mean"  # mean | sum, over the batch, of what is differentiated; the mean is what is recorded
    )
    config.aux_weight = 0.3  # of each auxiliary classifier's loss, where the network has such
    config.driver = "auto"  # streamed | resident | auto: resident where the data set is small
    config.steps_per_dispatch = 0  # 0: one on the CPU, up to the next evaluation on accelerators
    # For pictures that rest as files. num_threads: that decode, in each process; 0: one a core, 8 at most. num_workers:
    # processes that make the training batches; 0: threads of this one, which suffice for some eight cores.
    config.input = dict(num_workers=0, num_threads=0)
    # dtype: what the network computes in, float32 | bfloat16 | float16 (then the loss is scaled); parameters, statistics and
    # losses are float32 always.
    config.model = dict(name="", variant="", dtype="float32", overrides=ConfigDict())
    # What the weights begin from. from: the workdir of a run, or of imported weights; "": drawn by the seed. checkpoint:
    # newest | best. skip: regular expressions of paths that are not taken from there ("fc/.*").
    # data_images: training pictures, the first ones, that the model's own init_from_data begins from; 0: off
    config.init = {"from": "", "checkpoint": "newest", "skip": (), "data_images": 0}
    # What does not train. patterns: regular expressions of parameters' paths ("conv1/.*"), or (expression, epoch from which
    # on). is_annealed: what freezes later has the schedule of a run that ends there. batch_stats: regular expressions of
    # normalisations ("conv2_1/bn1", ".*") that apply their running statistics and leave them alone.
    config.freeze = dict(patterns=(), is_annealed=False, batch_stats=())
    # ((epoch, field, value), ...): fields of optim and freeze that change from that epoch on, e.g. to unfreeze:
    # ((5, "freeze.patterns", ()), (5, "optim.lr", 0.01)). The optimiser begins anew there (cnn_jax/phases.py).
    config.phases = ()
    config.data = dict(name="")  # and what the data set's module asks for
    config.augment = dict(  # of training pictures, in this order; one draw an example
        resized_area_range=(1.0, 1.0),  # part of the picture that a random window shows, resized; (1, 1): off
        resized_aspect_range=(3 / 4, 4 / 3),  # its width / height
        jitter_scale_range=(1.0, 1.0),  # factor of size before a window of the former size is cut out; (1, 1): off
        crop_padding_px=0,  # random crop out of the picture padded by so much, which is a whole shift; 0: off
        crop_padding="fill",  # fill | reflect
        max_shift_px=0.0,  # random affine map, about the centre
        max_rotation_deg=0.0,
        max_shear_deg=0.0,
        scale_range=(1.0, 1.0),
        flip="none",  # none | random | alternating: left for right, in every other epoch
        policy="none",  # none | trivial_wide | randaugment | randaugment_increasing (timm's)
        policy_num_ops=2,  # of the RandAugments
        policy_magnitude=9.0,  # of 30; of 10 for randaugment_increasing
        brightness=0.0,  # strengths s: a factor in [max(0, 1 - s), 1 + s]; 0: off
        contrast=0.0,
        saturation=0.0,
        lighting_std=0.0,  # AlexNet's, 0.1 there; 0: off
        cutout_px=0,  # side; 0: off
        erasing_probability=0.0,
        mixup_alpha=0.0,  # of Beta(alpha, alpha); 0: off. With both, each example has either
        cutmix_alpha=0.0,
        fill="black",  # black | mean: what comes in from outside the picture
        erased_fill="mean",  # black | mean | noise: what cutout and erasing put there
    )
    config.optim = dict(
        name="sgd",  # sgd | adamw | lars | lamb | muon (of kernels with a window, sgd of the rest)
        lr=0.1,
        momentum=0.9,
        use_nesterov=False,
        momentum_form="pytorch",  # pytorch | alexnet: the rate outside or inside the velocity
        use_decoupled=False,  # sgd: lr and weight_decay for 1,024 examples of a summed loss, each for itself
        weight_decay=0.0,
        decay_kinds=("kernel",),
        groups=(),  # ((regular expression of paths, factor of lr, factor of weight_decay), ...); the first that matches
        lr_scale=(),  # ((regular expression of paths, factor of lr), ...), decay as it is; the first that matches
        clip_norm=0.0,  # 0: off
        schedule="constant",  # constant | step | exponential | cosine | linear | poly | plateau
        warmup_epochs=0.0,
        warmup_form="linear",  # linear | constant
        warmup_start_factor=0.0,  # the rate at step 0, as a part of lr
        step_epochs=(),
        step_every_epochs=1.0,  # exponential
        step_factor=0.1,
        final_lr_factor=0.0,  # cosine, linear and poly end here, as a part of lr
        poly_power=2.0,
        plateau_factor=0.1,
        plateau_patience_evals=10,
        plateau_min_delta=0.0,
        ema_decay=0.0,  # 0: off
        lookahead_every_steps=0,  # 0: off
        lookahead_decay=0.5,  # what the average keeps of itself, times (step / steps of the run)^power
        lookahead_power=0.0,
        muon_momentum=0.95,
        muon_steps=5,  # of its Newton-Schulz iteration
        adam_b1=0.9,
        adam_b2=0.999,
        adam_eps=1e-8,
    )
    config.eval = dict(
        every_epochs=1.0,
        batch_size=512,
        views="whole",  # whole | centre | ten | dense | mirror | mirror_shift: what is seen of a picture
        view_average="probabilities",  # probabilities | logits: what is averaged over views
        view_px=0,  # side of the crops of centre and ten
        view_resize_px=0,  # shorter side that the pictures are first resized to; 0: as they come
        view_scales_px=(),  # dense: shorter sides
        view_resample="bilinear",
    )
    config.checkpoint = dict(every_epochs=1.0)
    # profile_steps: first and last step of a profiler trace, written under WORKDIR/profile; (): none
    config.log = dict(every_steps=50, use_tensorboard=True, profile_steps=())
    return config.lock()


def pictures(name: str, dir: str = "", **changes) -> ConfigDict:
    """The `config.data` of a set whose pictures rest as files of any size (cnn_jax/data/encoded.py tells what is what).

    changes: fields that differ from the defaults, and those that only this set has.
    """
    return ConfigDict(
        dict(
            name=name,
            dir=dir,
            image_px=224,
            size_epochs=(),  # ((epoch, px), ...): from that epoch on pictures of px
            crop="random_resized",  # random_resized | scale_jitter | centre
            area_range=(0.08, 1.0),  # random_resized: of the picture's area
            aspect_range=(3 / 4, 4 / 3),  # random_resized: width / height
            short_side_range_px=(256, 480),  # scale_jitter
            eval_resize_px=256,
            eval_image_px=224,
            resample="bilinear",  # bilinear | bicubic
            num_test=0,  # pictures of train held out as the test split, where the set has none of its own
            repeats=1,  # of each picture in a batch, each with draws of its own; an epoch shows so many times fewer
        )
        | changes
    )


def parse(arg: str | None, **defaults):
    """The `ARG` of `CONFIG:ARG`, "key=value,key=value", over `defaults`, each value read as its default's type.

    A first value without a key is that of the first default: `lenet_digits:modern`. Returns a ConfigDict.
    Raises ValueError for a key that no default has, or a value of another type.
    """
    values = dict(defaults)
    for position, item in enumerate(filter(None, (arg or "").split(","))):
        key, equals, value = item.partition("=")
        if not equals and position == 0 and defaults:
            key, value = next(iter(defaults)), item
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"config argument {item!r}: the recipe takes {known}")
        kind = type(defaults[key])
        try:
            values[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise ValueError(f"config argument {key}={value!r} must be of type {kind.__name__}") from None
    return ConfigDict(values)
