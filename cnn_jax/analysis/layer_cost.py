"""A row of a network's table: what it says of a layer, and how that is made of the layer's equations."""

import math
from dataclasses import dataclass, field
from itertools import combinations

from cnn_jax.analysis.costs import flops_of, is_transposed, macs_of
from cnn_jax.analysis.walk import Value, Visit


@dataclass(frozen=True)
class LayerCost:
    """A row of the table.

    Fields:
      name: the module's path, or the feature map's name; the model's class for what is left.
      kind: "conv", "grouped conv", "depthwise conv", "transposed conv", "locally connected" (a kernel for each place),
        "dense", "matmul" (other products), "norm", "pool", "block" (what a module does between its layers), "map" (any
        other feature map), "other".
      output_shape: with the batch.
      closed_form_macs: of convolutions and dense layers the same from the sizes of kernel and map alone, else None.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    params: int
    macs: int
    closed_form_macs: int | None
    flops: int
    activation_bytes: int
    training_activation_bytes: int


@dataclass
class Row:
    """A row in the making.

    Fields: its map; its module's kernel; the row of the equation that ends its module or makes its map; its place among
    the rows; the equations booked on it.
    """

    output: Value
    kernel: tuple[int, ...] | None = None
    params: int = 0
    saved_bytes: int = 0
    stacked_bytes: int = 0
    made_by: str | None = None
    place: float = math.inf
    visits: list[Visit] = field(default_factory=list)

    def cost(self, name: str, otherwise: str, *, has_map: bool) -> LayerCost:
        kind = self.kind(otherwise)
        return LayerCost(
            name,
            kind,
            self.output.shape,
            self.params,
            sum(map(macs_of, self.visits)),
            self.closed_form(kind),
            sum(map(flops_of, self.visits)),
            self.stacked_bytes + (num_bytes(self.output) if has_map else 0),
            self.saved_bytes,
        )

    def kind(self, otherwise: str) -> str:
        for visit in self.visits:
            if visit.primitive == "conv_general_dilated":
                if self.is_local():
                    return "locally connected"
                if is_transposed(visit.eqn):
                    return "transposed conv"
                groups = visit.eqn.params["feature_group_count"]
                channels = visit.inputs[0].shape[visit.eqn.params["dimension_numbers"].lhs_spec[1]]
                return "conv" if groups == 1 else "depthwise conv" if groups == channels else "grouped conv"
        if macs := sum(map(macs_of, self.visits)):
            # A convolution by a matrix product is still one: its kernel has as many axes as its map.
            num_axes = len(self.applied_kernel() or self.kernel or ())
            is_conv = num_axes == len(self.output.shape) > 2 and self.closed_form("conv") == macs
            return "conv" if is_conv else "dense" if num_axes == 2 else "matmul"
        if otherwise == "block":
            return otherwise
        if any(visit.primitive == "rsqrt" or _is_over_channels(visit) for visit in self.visits):
            return "norm"
        return "pool" if any(map(_is_pooling, self.visits)) else otherwise

    def closed_form(self, kind: str) -> int | None:
        """Multiply-adds from the kernel's shape and the sizes of the maps that it is applied to, or makes."""
        products = [visit for visit in self.visits if macs_of(visit)]
        kernel = self.applied_kernel()
        if not kernel or (kind != "dense" and not kind.endswith("conv")):
            return None
        if kind == "transposed conv":
            inputs = sum(visit.times * math.prod(visit.inputs[0].shape) for visit in products)
            return inputs * math.prod(kernel) // products[0].inputs[0].shape[-1]
        outputs = sum(visit.times * math.prod(visit.outputs[0].shape) for visit in products)
        return outputs * math.prod(kernel[:-1]) if kernel[-1:] == self.output.shape[-1:] else None

    def applied_kernel(self) -> tuple[int, ...] | None:
        """The kernel as one run of its equation takes it: without the axes along which loops stack kernels.

        None where no product takes it, as a whole or from such a stack.
        """
        kernel = self.kernel or ()
        for visit in filter(macs_of, self.visits):
            for shape in (value.shape for value in visit.inputs[:2]):
                if math.prod(shape) == math.prod(kernel):
                    return self.kernel
                for num_stacked in range(1, len(kernel)):
                    for axes in combinations(range(len(kernel)), num_stacked):
                        rest = tuple(n for axis, n in enumerate(kernel) if axis not in axes)
                        is_stack = visit.times > 1 and visit.times % math.prod(kernel[axis] for axis in axes) == 0
                        if is_stack and sorted(rest) == sorted(shape):
                            return rest
        return None

    def is_local(self) -> bool:
        """Whether each place has a kernel of its own, which no convolution takes, but a product place by place."""
        products = [visit for visit in self.visits if visit.primitive == "dot_general"]
        return any(
            visit.eqn.params["dimension_numbers"][1][0] and self.kernel in [value.shape for value in visit.inputs]
            for visit in products
        )


def num_bytes(value: Value) -> int:
    """Of an array."""
    return math.prod(value.shape) * value.dtype.itemsize


def _is_over_channels(visit: Visit) -> bool:
    """Whether a window slides over channels alone, as in local response normalisation."""
    *others, channels = visit.eqn.params.get("window_dimensions", (1,))
    return channels > 1 and set(others) == {1}


def _is_pooling(visit: Visit) -> bool:
    """Whether an equation makes smaller maps of maps, or vectors, with the same examples and channels."""
    before, after = (
        max([value.shape for value in values], key=math.prod, default=()) for values in (visit.inputs, visit.outputs)
    )
    is_same = len(before) > 2 and len(after) > 1 and (before[0], before[-1]) == (after[0], after[-1])
    return is_same and math.prod(before) > math.prod(after)
