"""What stands around a network in its file: preprocessing in front, the norm behind, as standard ONNX operators."""

import onnx
from onnx import compose, parser

from indistill.export.artefact import INPUT_NAMES, OUTPUT_NAME
from indistill.preprocess import Preprocessing

IMAGE, PIXEL_VALUES = INPUT_NAMES["image"], INPUT_NAMES["tensor"]
FEATURES = "features"  # the embedding before it has length one
SHORTEST = 1e-12  # a shorter vector is divided by this, as torch.nn.functional.normalize does


def prepend_preprocessing(network: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Returns a model that takes decoded images (B, H, W, 3) uint8 of any size, for one that takes `pixel_values`.

    The steps are those of `Preprocessing`. Pillow resizes in two passes, first the rows and then the columns, and
    rounds after each, halves up. The first pass here is over bytes, as ONNX Runtime rounds them as Pillow does; the
    second is over floats, which is faster. Few values are one 8-bit level apart; where the scale is a simple fraction,
    so that halves are exact and rounded either way, one in ten thousand is two levels apart.
    What the crop takes away is not computed in the second pass. An image of the right size passes unchanged.

    Args:
        network: takes `pixel_values` (B, 3, S, S) float32.
        preprocessing: what its images go through.

    Reference:
        ONNX operators, `Resize`, version 19 (its `antialias`, `axes` and `sizes`).
    """
    scale = ", ".join(f"{1 / (255 * std):.9g}" for std in preprocessing.std)
    shift = ", ".join(f"{mean / std:.9g}" for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True))
    side = preprocessing.image_size
    front = parser.parse_model(f"""
        {_make_header(network)}
        preprocessing (uint8[batch, height, width, 3] {IMAGE}) => (float[batch, 3, {side}, {side}] preprocessed)
        <int64[1] preprocess_zero = {{0}}, int64[1] preprocess_one = {{1}}, int64[1] preprocess_two = {{2}},
         int64[1] preprocess_side = {{{side}}}, int64[1] preprocess_shortest_edge = {{{preprocessing.shortest_edge}}},
         float preprocess_half = {{0.5}},
         float[1, 3, 1, 1] preprocess_scale = {{{scale}}}, float[1, 3, 1, 1] preprocess_shift = {{{shift}}}>
        {{
            preprocess_sides = Shape <start = 1, end = 3> ({IMAGE})
            preprocess_shorter = ReduceMin <keepdims = 1> (preprocess_sides)
            preprocess_enlarged = Mul (preprocess_sides, preprocess_shortest_edge)
            preprocess_sizes = Div (preprocess_enlarged, preprocess_shorter)
            preprocess_spare = Sub (preprocess_sizes, preprocess_side)
            preprocess_start = Div (preprocess_spare, preprocess_two)
            preprocess_end = Add (preprocess_start, preprocess_side)
            preprocess_height = Slice (preprocess_sizes, preprocess_zero, preprocess_one)
            preprocess_top = Slice (preprocess_start, preprocess_zero, preprocess_one)
            preprocess_bottom = Slice (preprocess_end, preprocess_zero, preprocess_one)
            preprocess_width = Slice (preprocess_sizes, preprocess_one, preprocess_two)
            preprocess_left = Slice (preprocess_start, preprocess_one, preprocess_two)
            preprocess_right = Slice (preprocess_end, preprocess_one, preprocess_two)

            preprocess_wide = Resize <mode = "linear", antialias = 1, axes = [2],
                coordinate_transformation_mode = "half_pixel"> ({IMAGE}, , , preprocess_width)
            preprocess_columns = Slice (preprocess_wide, preprocess_left, preprocess_right, preprocess_two)
            preprocess_float = Cast <to = 1> (preprocess_columns)
            preprocess_tall = Resize <mode = "linear", antialias = 1, axes = [1],
                coordinate_transformation_mode = "half_pixel"> (preprocess_float, , , preprocess_height)
            preprocess_square = Slice (preprocess_tall, preprocess_top, preprocess_bottom, preprocess_one)
            preprocess_up = Add (preprocess_square, preprocess_half)
            preprocess_levels = Floor (preprocess_up)
            preprocess_channels = Transpose <perm = [0, 3, 1, 2]> (preprocess_levels)
            preprocess_scaled = Mul (preprocess_channels, preprocess_scale)
            preprocessed = Sub (preprocess_scaled, preprocess_shift)
        }}
    """)
    for index, node in enumerate(front.graph.node):
        node.name = f"preprocess_{index}_{node.op_type}"
    return compose.merge_models(front, network, io_map=[("preprocessed", PIXEL_VALUES)])


def append_norm(network: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model that gives unit vectors `embedding` (B, D) float32, for one that gives `features`."""
    width = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    end = parser.parse_model(f"""
        {_make_header(network)}
        norm (float[batch, {width}] norm_features) => (float[batch, {width}] {OUTPUT_NAME})
        <int64[1] norm_axes = {{1}}, float norm_shortest = {{{SHORTEST}}}>
        {{
            norm_length = ReduceL2 <keepdims = 1> (norm_features, norm_axes)
            norm_safe_length = Max (norm_length, norm_shortest)
            {OUTPUT_NAME} = Div (norm_features, norm_safe_length)
        }}
    """)
    for index, node in enumerate(end.graph.node):
        node.name = f"norm_{index}_{node.op_type}"
    return compose.merge_models(network, end, io_map=[(FEATURES, "norm_features")])


def _make_header(network: onnx.ModelProto) -> str:
    opset = next(entry.version for entry in network.opset_import if entry.domain == "")
    return f'<ir_version: {network.ir_version}, opset_import: ["" : {opset}]>'
