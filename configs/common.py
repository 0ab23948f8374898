"""What every recipe starts from: `base()` names each field of a run and its default; a recipe says what differs.

Fields carry their units. No field is derived from another: what follows from several is worked out when the run starts.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The defaults. A recipe must name its model and its data."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 128  # over all devices
    config.num_epochs = 10.0
    config.task = "classification"
    config.label_smoothing = 0.0
    config.driver = "auto"  # streamed | resident | auto: resident where the data set is small
    config.steps_per_dispatch = 0  # 0: one on the CPU, up to the next evaluation on accelerators
    config.model = dict(name="", variant="", dtype="float32", overrides=ConfigDict())
    config.data = dict(name="")  # and what the data set's module asks for
    config.augment = dict(max_shift_px=0.0, max_rotation_deg=0.0, max_shear_deg=0.0, scale_range=(1.0, 1.0))
    config.optim = dict(
        name="sgd",  # sgd | adamw
        lr=0.1,
        momentum=0.9,
        use_nesterov=False,
        momentum_form="pytorch",  # pytorch | alexnet: the rate outside or inside the velocity
        weight_decay=0.0,
        decay_kinds=("kernel",),
        clip_norm=0.0,  # 0: off
        schedule="constant",  # constant | step | cosine | linear | plateau
        warmup_epochs=0.0,
        step_epochs=(),
        step_factor=0.1,
        final_lr_factor=0.0,  # cosine and linear end here, as a part of lr
        plateau_factor=0.1,
        plateau_patience_evals=10,
        plateau_min_delta=0.0,
        ema_decay=0.0,  # 0: off
        adam_b1=0.9,
        adam_b2=0.999,
        adam_eps=1e-8,
    )
    config.eval = dict(every_epochs=1.0, batch_size=512)
    config.checkpoint = dict(every_epochs=1.0)
    # profile_steps: first and last step of a profiler trace, written under WORKDIR/profile; (): none
    config.log = dict(every_steps=50, use_tensorboard=True, profile_steps=())
    return config.lock()


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
