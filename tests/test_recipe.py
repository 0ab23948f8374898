"""From a recipe and a command line to a config. What is refused, and how, stands in test_main.py."""

import pytest

from cnn_jax.recipe import UsageError, base_fields, load_config, member_values, parse_literal, split_members
from cnn_jax.workdir import flat

DIGITS = "configs/lenet_digits.py"


def test_overrides_are_read_by_the_type_of_their_field():
    config = load_config(
        DIGITS,
        ["--config.optim.lr=1", "--config.optim.step_epochs=(30, 60)", "--config.log.use_tensorboard=False",
         "--config.optim.decay_kinds=('kernel', 'bias')", "--config.model.variant=modern", "--config.num_epochs=2.5"],
    )  # fmt: skip
    assert isinstance(config.optim.lr, float) and config.optim.lr == 1.0 and config.num_epochs == 2.5
    assert config.optim.step_epochs == (30, 60) and config.optim.decay_kinds == ("kernel", "bias")
    assert config.log.use_tensorboard is False


def test_a_field_of_the_network_is_set_on_the_command_line():
    config = load_config(DIGITS, ["--config.model.overrides.remat=true", "--config.model.overrides.widths=(1, 2)"])
    assert dict(config.model.overrides) == {"remat": True, "widths": (1, 2)}


def test_the_argument_chooses_the_network():
    assert load_config("configs/xo.py", []).model.name == "models.lenet"
    config = load_config("configs/xo.py:xonet", ["--config.seed=3"])
    assert (config.model.name, config.model.variant, config.seed) == ("models.xonet", "drawn", 3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("3", 3),
        ("0.5", 0.5),
        ("(1, 2)", (1, 2)),
        ("relu", "relu"),
        ("1,", (1,)),
        ("", ""),
    ],
)
def test_what_no_default_types_is_a_literal_or_a_word(text, value):
    assert parse_literal(text) == value and type(parse_literal(text)) is type(value)


def test_a_field_of_the_network_needs_a_value():
    with pytest.raises(UsageError, match=r"no field config\.model\.overrides\.remat"):
        load_config(DIGITS, ["--config.model.overrides.remat"])


def test_members_are_split_off_and_read_by_the_type_of_their_field():
    arguments = ["--config.num_epochs=2", "--members.seed=0..3", "--members.optim.lr=1,0.5"]
    rest, grid = split_members(arguments)
    assert rest == arguments[:1]
    assert member_values(load_config(DIGITS, rest), grid) == {"seed": [0, 1, 2, 3], "optim.lr": [1.0, 0.5]}
    assert member_values(load_config(DIGITS, []), {"seed": "7,9"}) == {"seed": [7, 9]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--members.seed"], "must be --members.KEY=VALUE"),
        (["--members.seed=0", "--members.seed=1"], "each key once"),
        (["--members.sed=0"], r"no field sed for members .*did you mean 'seed'"),
        (["--members.seed=0,x"], "--members.seed=x must be of type int"),
        (["--members.seed=0..x"], "--members.seed=x must be of type int"),
    ],
)
def test_members_that_cannot_be_read(arguments, says):
    with pytest.raises(UsageError, match=says):
        member_values(load_config(DIGITS, []), split_members(arguments)[1])


def test_base_fields_are_those_that_every_recipe_has():
    fields = base_fields()
    assert fields["seed"] == 0 and fields["optim.decay_kinds"] == ["kernel"] and fields["model.name"] == ""
    assert fields.keys() - {"data.name"} <= flat(load_config(DIGITS, [])).keys()
