"""A network as its paper's table: layer by layer its kind, map, parameters, multiply-adds, receptive field and stride."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from cnn_jax.analysis.complexity import Trace
from cnn_jax.analysis.receptive_field import ReceptiveField, fields_of


class Description(dict[str, Any]):
    """`describe`'s plain data, and what is not in them.

    Fields:
      is_exact: whether nothing that was counted depends on data.
      kernels: by layer the shape of its kernel.
    """

    def __init__(self, data: dict[str, Any], is_exact: bool, kernels: dict[str, tuple[int, ...]]):
        super().__init__(data)
        self.is_exact, self.kernels = is_exact, kernels


def describe(module: nn.Module, input_shape: Sequence[int], *, model: str, variant: str) -> Description:
    """What `analyze` prints, as plain data; nothing is computed but shapes.

    module is any that `analyze_module` takes, with or without an argument `train`. Shapes are without the batch.
    receptive_field and stride have a number for each spatial axis where "sees" is "part"; they are None where it is "all",
    as the layer sees the whole picture wherever it looks, and where it is "unknown": the theory cannot follow the field,
    or it was not computed, as within loops and for inputs without places.

    Returns:
      {"model", "variant", "input_shape", "layers": [{"name", "kind", "output_shape", "params", "macs",
      "receptive_field", "stride", "sees"}], "totals": {"params", "macs", "flops", "activation_bytes",
      "training_activation_bytes"}}; the conventions of the numbers are those of `complexity`.
    """
    trace = Trace(module, input_shape)
    cost, fields = trace.complexity(), {}
    if len(input_shape) > 1:
        whole = {type(module).__name__: value for path, value in trace.calls.items() if not path}
        fields = fields_of(whole | trace.forward.maps, trace.forward.program, with_layers=True)
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "output_shape": list(layer.output_shape[1:]),
            "params": layer.params,
            "macs": layer.macs,
            **_seen(fields.get(layer.name)),
        }
        for layer in cost.layers
    ]
    names = ("params", "macs", "flops", "activation_bytes", "training_activation_bytes")
    totals = {name: getattr(cost, name) for name in names}
    shape = list(input_shape)
    data = {"model": model, "variant": variant, "input_shape": shape, "layers": layers, "totals": totals}
    paths = flatten_dict(trace.params, sep="/")
    kernels = {path.removesuffix("/kernel"): leaf.shape for path, leaf in paths.items() if path.endswith("/kernel")}
    return Description(data, cost.is_exact, kernels)


def _seen(field: ReceptiveField | None) -> dict[str, Any]:
    sees = "unknown" if field is None or field.unknown else "all" if field.is_global else "part"
    if sees != "part":
        return {"receptive_field": None, "stride": None, "sees": sees}
    stride = [float(s) if s is not None and s != int(s) else s and int(s) for s in field.stride]
    return {"receptive_field": list(field.size), "stride": stride, "sees": sees}


COLUMNS = ("layer", "kind", "output", "params", "MACs", "field", "stride")


def rows_of(description: dict[str, Any]) -> list[tuple[str, ...]]:
    """The text under each of COLUMNS, for the layers that do something; empty for none.

    A field is "all" of what sees the whole picture, and "?" where it is not known.
    """
    return [
        (
            layer["name"],
            layer["kind"],
            _by(layer["output_shape"]),
            f"{layer['params']:,}" if layer["params"] else "",
            f"{layer['macs']:,}" if layer["macs"] else "",
            _square(layer, "receptive_field"),
            _square(layer, "stride"),
        )
        for layer in description["layers"]
        if layer["kind"] != "map" or layer["params"] or layer["macs"]  # else another name for the map above
    ]


def render(description: dict[str, Any]) -> str:
    """The description as a table of text: `rows_of`, then the totals."""
    unknown = any(layer["sees"] == "unknown" for layer in description["layers"])
    is_exact = getattr(description, "is_exact", True)
    rows = [COLUMNS, *rows_of(description)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = (True, True, True, False, False, False, False)
    lines = [
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    totals = description["totals"]
    title = f"{description['model']}:{description['variant']}, input {_by(description['input_shape'])}"
    return "\n".join(
        [
            title,
            "",
            *lines,
            "",
            f"parameters          {totals['params']:,}",
            f"multiply-adds       {totals['macs']:,} ({totals['macs'] / 1e9:.3f} G); "
            f"{totals['flops'] / 1e9:.3f} GFLOP with everything else",
            f"activations         {totals['activation_bytes'] / 1e6:.1f} MB a picture forward, "
            f"{totals['training_activation_bytes'] / 1e6:.1f} MB kept for the backward pass",
            *["?                   the theory cannot follow this receptive field, or it was not computed"] * unknown,
            *["not exact           loops on data count as one round, and of branches on data the costliest"]
            * (not is_exact),
        ]
    )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _square(layer: dict[str, Any], key: str) -> str:
    """One number where all axes agree; "all" of what sees the whole picture, "?" where that is not known."""
    if layer["sees"] != "part":
        return {"all": "all", "unknown": "?"}[layer["sees"]]
    sizes = layer[key]
    return f"{sizes[0]}" if len(set(sizes)) == 1 else _by(sizes)
