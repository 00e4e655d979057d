"""ONNX files as models: our exports against PyTorch, other programs' files against arithmetic by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from metricid.errors import InputError
from metricid.export import export_onnx, quantize_int8
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing
from metricid.models.inference import CheckpointModel, InferenceModel
from metricid.models.onnx import OnnxModel
from metricid.models.onnx_file import CARD_KEY, OnnxFile
from metricid.models.onnx_plan import OnnxOptions

SCALING = OnnxOptions(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
PIXELS = Preprocessing((32, 24), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "BGR")


def make_embedder(backbone="test_resnet", seed=0, **options):
    """A network whose every weight matters: an untrained one has zeros in the last layer of each block."""
    torch.manual_seed(seed)
    embedder = Embedder(EmbedderConfig(backbone, options.pop("pixels", PIXELS), **options)).eval()
    for module in embedder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return embedder


def pictures(count, size=(32, 24), seed=0):
    shape = (count, *size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def embedder():
    return make_embedder(neck="bnneck", pooling="gem", embedding_dim=20)


@pytest.fixture(scope="module")
def exported(embedder):
    return export_onnx(embedder, name="small", license="CC0")


@pytest.fixture(scope="module")
def by_pixels(embedder):
    return export_onnx(embedder, name="small", input_kind="pixels")


def card_of(data):
    return json.loads({e.key: e.value for e in onnx.load_from_string(data).metadata_props}[CARD_KEY])


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_an_export_used_as_its_card_says_gives_what_pytorch_gives(embedder, exported, batch):
    card = card_of(exported)
    assert card["input"]["layout"] == "NCHW" and card["preprocessing"]["color_order"] == "BGR"
    images = pictures(batch)
    mean, std = (np.array(card["preprocessing"][name], np.float32) for name in ("mean", "std"))
    x = (images.numpy()[..., ::-1].astype(np.float32) / 255 - mean) / std
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    feed = {card["input"]["name"]: np.ascontiguousarray(x.transpose(0, 3, 1, 2))}
    (found,) = session.run([card["output"]["name"]], feed)
    with torch.inference_mode():
        expected = embedder.embed(images).numpy()
    assert found.shape == (batch, 20) and card["dimension"] == 20
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_an_export_with_pixels_as_input_normalises_inside(embedder, by_pixels):
    images = pictures(3)
    session = onnxruntime.InferenceSession(by_pixels, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        expected = embedder.embed(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_an_export_is_valid_whole_and_says_nothing_of_the_machine(exported):
    model = onnx.load_from_string(exported)
    onnx.checker.check_model(model, full_check=True)
    assert not any(t.external_data for t in model.graph.initializer)
    assert b"metricid/models" not in exported and b".py" not in exported
    card = card_of(exported)
    assert card["license"] == "CC0" and card["normalised"] is False and card["precision"] == "float32"


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["exported", "by_pixels"])
def test_an_export_stands_in_for_its_checkpoint(embedder, request, kind, flip):
    model = OnnxModel(OnnxFile.parse(request.getfixturevalue(kind), "model.onnx"))
    checkpoint = CheckpointModel(embedder, name="small", device=torch.device("cpu"))
    assert isinstance(model, InferenceModel)
    images = pictures(5)
    found, expected = model.embed(images, flip=flip), checkpoint.embed(images, flip=flip)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert model.fingerprint == checkpoint.fingerprint
    assert model.output_dim == checkpoint.output_dim and model.batch_limit is None
    assert model.preprocessing == checkpoint.preprocessing
    assert json.loads(json.dumps(model.describe()))["fingerprint"] == checkpoint.fingerprint
    assert model.embed(images[:0], flip=flip).shape == (0, 20)


def test_the_embedder_is_not_changed_by_an_export():
    embedder = make_embedder().train()
    embedder.channels_last = True
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    export_onnx(embedder, name="small")
    assert embedder.training and embedder.channels_last
    assert all(torch.equal(value, before[name]) for name, value in embedder.state_dict().items())


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_families_export_with_an_open_batch(backbone):
    embedder = make_embedder(backbone, pixels=Preprocessing((64, 64)))
    model = OnnxModel(OnnxFile.parse(export_onnx(embedder, name=backbone), backbone))
    assert model.batch_limit is None
    for batch in (1, 3):
        images = pictures(batch, (64, 64))
        with torch.inference_mode():
            expected = embedder.embed(images)
        found = model.embed(images, flip=False)
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_file_changed_after_the_export_has_another_fingerprint(embedder, exported, tmp_path):
    original = OnnxModel(OnnxFile.parse(exported, "a"))
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.onnx").write_bytes(exported)
        assert OnnxModel(tmp_path / folder / f"{folder}.onnx").fingerprint == original.fingerprint
    model = onnx.load_from_string(exported)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor) * 1.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    changed = OnnxModel(OnnxFile.parse(model.SerializeToString(), "a"))
    assert changed.fingerprint != original.fingerprint
    others = [make_embedder(seed=1, neck="bnneck", pooling="gem", embedding_dim=20)]
    assert OnnxModel(OnnxFile.parse(export_onnx(others[0], name="b"), "b")).fingerprint not in (
        original.fingerprint,
        changed.fingerprint,
    )


def test_int8_is_smaller_near_and_has_a_fingerprint_of_its_own(embedder, exported):
    model = OnnxModel(OnnxFile.parse(exported, "float.onnx"))
    data = quantize_int8(model, pictures(64))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert len(data) < 0.5 * len(exported)
    small = OnnxModel(OnnxFile.parse(data, "int8.onnx"))
    weights = [t.data_type for t in onnx.load_from_string(data).graph.initializer if len(t.dims) == 4]
    assert weights and set(weights) == {TensorProto.INT8}
    images = pictures(20, seed=9)
    a, b = model.embed(images, flip=True), small.embed(images, flip=True)
    assert float(nn.functional.cosine_similarity(a, b).min()) > 0.9
    assert small.fingerprint != model.fingerprint
    assert small.describe()["source"] == model.fingerprint and small.precision == "int8"
    assert small.embed(images[:1], flip=False).shape == (1, 20)
    with pytest.raises(InputError, match="only a float file"):
        quantize_int8(small, images)
    with pytest.raises(InputError, match="images to calibrate"):
        quantize_int8(model, images[:0])


def foreign(
    shape,
    *,
    layout="NCHW",
    kind=TensorProto.FLOAT,
    outputs=("vector",),
    keep_map=False,
    reshape=None,
    width=3,
    extra_input=False,
    op="ReduceMean",
):
    """A file of another program: the mean of each channel, and more outputs or inputs if asked."""
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    if len(shape) == 3:
        axes = [1, 2]
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node(op, ["f", "axes"], ["mean"], keepdims=int(keep_map)))
    constants = [helper.make_tensor("axes", TensorProto.INT64, [2], axes)]
    last = "mean"
    if reshape is not None:
        constants.append(helper.make_tensor("to", TensorProto.INT64, [2], reshape))
        nodes.append(helper.make_node("Reshape", ["mean", "to"], ["flat"]))
        last = "flat"
    out_shape = ["n", width, 1, 1] if keep_map else ["n", width]
    for name in outputs:
        nodes.append(helper.make_node("Identity", [last], [name]))
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, out_shape) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return OnnxFile.parse(model.SerializeToString(), "other.onnx")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    layout=st.sampled_from(["NCHW", "NHWC"]),
    order=st.sampled_from(["RGB", "BGR", None]),
    mean=st.tuples(*[st.floats(0, 255)] * 3),
    std=st.tuples(*[st.floats(1, 255)] * 3),
    count=st.integers(1, 5),
    fixed=st.sampled_from([None, 1, 2, 4]),
    symbolic_size=st.booleans(),
)
def test_a_foreign_file_gets_its_pixels_as_the_options_say(
    layout, order, mean, std, count, fixed, symbolic_size
):
    sides = ["h", "w"] if symbolic_size else [6, 5]
    batch = "n" if fixed is None else fixed
    shape = [batch, 3, *sides] if layout == "NCHW" else [batch, *sides, 3]
    options = OnnxOptions(size=(6, 5) if symbolic_size else None, mean=mean, std=std, color_order=order)
    model = OnnxModel(foreign(shape, layout=layout), options=options)
    assert model.batch_limit == fixed and model.output_dim == 3 and model.preprocessing.size == (6, 5)
    images = pictures(count, (6, 5))
    pixels = images.numpy().astype(np.float64)
    channels = pixels[..., ::-1] if order == "BGR" else pixels
    expected = ((channels - mean) / std).mean(axis=(1, 2))
    np.testing.assert_allclose(model.embed(images, flip=False).numpy(), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(model.embed(images, flip=True).numpy(), 2 * expected, rtol=1e-4, atol=1e-3)


def test_uint8_float16_and_map_outputs_of_foreign_files():
    images = pictures(3, (6, 5))
    means = images.numpy().astype(np.float64).mean(axis=(1, 2))
    raw = OnnxModel(foreign(["n", 6, 5, 3], layout="NHWC", kind=TensorProto.UINT8))
    np.testing.assert_allclose(raw.embed(images, flip=False).numpy(), means, rtol=1e-5)
    half = OnnxModel(foreign(["n", 3, 6, 5], kind=TensorProto.FLOAT16), options=SCALING)
    np.testing.assert_allclose(half.embed(images, flip=False).numpy(), means / 127.5 - 1, atol=2e-3)
    mapped = OnnxModel(foreign(["n", 3, 6, 5], keep_map=True), options=SCALING)
    np.testing.assert_allclose(mapped.embed(images, flip=False).numpy(), means / 127.5 - 1, atol=1e-5)
    swapped = OnnxModel(
        foreign(["n", 6, 5, 3], layout="NHWC", kind=TensorProto.UINT8), options=OnnxOptions(color_order="BGR")
    )
    np.testing.assert_allclose(swapped.embed(images, flip=False).numpy(), means[:, ::-1], rtol=1e-5)


def test_a_batch_fixed_inside_the_graph_is_found_and_served():
    model = OnnxModel(foreign(["n", 3, 6, 5], reshape=[1, 3]), options=SCALING)
    assert model.batch_limit == 1
    images = pictures(4, (6, 5))
    expected = images.numpy().astype(np.float64).mean(axis=(1, 2)) / 127.5 - 1
    np.testing.assert_allclose(model.embed(images, flip=False).numpy(), expected, atol=1e-5)


def test_the_width_is_measured_where_the_file_leaves_it_open():
    assert OnnxModel(foreign(["n", 3, 6, 5], width="d"), options=SCALING).output_dim == 3


def test_options_are_part_of_the_fingerprint_and_the_place_is_not():
    file = foreign(["n", 3, 6, 5])
    same = OnnxModel(file, options=SCALING).fingerprint
    renamed = OnnxFile.parse(file.data, "renamed.onnx")
    assert OnnxModel(renamed, options=SCALING).fingerprint == same
    swapped = OnnxOptions(mean=SCALING.mean, std=SCALING.std, color_order="BGR")
    assert OnnxModel(file, options=swapped).fingerprint != same


def test_weights_beside_the_file_are_used_checked_and_confined(tmp_path):
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["vector"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
        onnx.numpy_helper.from_array(weight, "w"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 5])]
    outputs = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = tmp_path / "big.onnx"
    onnx.save(model, file, save_as_external_data=True, location="big.data", size_threshold=16)
    opened = OnnxModel(file, options=SCALING)
    images = pictures(2, (6, 5))
    expected = (images.numpy().astype(np.float64).mean(axis=(1, 2)) / 127.5 - 1) @ weight
    np.testing.assert_allclose(opened.embed(images, flip=False).numpy(), expected, atol=1e-4)
    (tmp_path / "big.data").write_bytes((weight + 1).tobytes())
    assert OnnxModel(file, options=SCALING).fingerprint != opened.fingerprint
    (tmp_path / "big.data").unlink()
    with pytest.raises(InputError, match=r"weights lie in big\.data, which is missing"):
        OnnxModel(file, options=SCALING)
    stored = onnx.load(file, load_external_data=False)
    for tensor in stored.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere.data"
    with pytest.raises(InputError, match="outside its folder"):
        OnnxFile.parse(stored.SerializeToString(), "big.onnx", file)


REFUSED = [
    ({"shape": ["n", 3, 6, 5]}, OnnxOptions(), "does not say how pixels are scaled"),
    ({"shape": ["n", 3, "h", "w"]}, SCALING, "does not say its image size"),
    ({"shape": ["n", "c", 6, 5]}, SCALING, "does not say where the channels are"),
    ({"shape": ["n", 1, 6, 5]}, SCALING, "no three colour channels"),
    ({"shape": ["n", 3, 6], "width": "d"}, SCALING, "has 3 dimensions"),
    (
        {"shape": ["n", 3, 6, 5], "kind": TensorProto.DOUBLE},
        SCALING,
        "must be float32, float16 or uint8",
    ),
    ({"shape": ["n", 3, 6, 5], "outputs": ("a", "b")}, SCALING, r"2 outputs \(a, b\)"),
    ({"shape": ["n", 3, 6, 5], "extra_input": True}, SCALING, r"2 inputs \(x, y\)"),
    (
        {"shape": ["n", 3, 6, 5], "op": "NoSuchOperator"},
        SCALING,
        "operator that onnxruntime .* does not know",
    ),
    (
        {"shape": ["n", 3, 6, 5]},
        OnnxOptions(mean=SCALING.mean, std=SCALING.std, size=(7, 5)),
        "takes images of 6x5 .*, not 7x5",
    ),
    (
        {"shape": ["n", 3, 6, 5]},
        OnnxOptions(mean=SCALING.mean, std=SCALING.std, layout="NHWC"),
        "cannot be NHWC",
    ),
    (
        {"shape": ["n", 3, 6, 5]},
        OnnxOptions(mean=SCALING.mean, std=SCALING.std, output="z"),
        "has no output z, but vector",
    ),
    (
        {"shape": ["n", 3, 6, 5]},
        OnnxOptions(mean=(0.5,) * 3, std=(0.5,) * 3),
        "multiply both by 255",
    ),
    ({"shape": ["n", 3, 6, 5]}, OnnxOptions(mean=(0.0,) * 3, std=(0.0,) * 3), "must be above 0"),
    (
        {"shape": ["n", 6, 5, 3], "layout": "NHWC", "kind": TensorProto.UINT8},
        SCALING,
        "takes uint8 pixels",
    ),
    ({"shape": ["n", 3, 6, 5], "reshape": [-1, 1]}, SCALING, "not one vector per image"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, options, message):
    with pytest.raises(InputError, match=message) as caught:
        OnnxModel(foreign(**arguments), options=options)
    assert ("\n" not in str(caught.value) and "other.onnx" in str(caught.value)) or "--onnx" in str(
        caught.value
    )


def test_several_outputs_with_a_choice():
    options = OnnxOptions(mean=SCALING.mean, std=SCALING.std, output="b")
    assert OnnxModel(foreign(["n", 3, 6, 5], outputs=("a", "b")), options=options).output_dim == 3


def test_a_size_that_the_graph_cannot_take():
    options = OnnxOptions(size=(7, 7), mean=SCALING.mean, std=SCALING.std)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["vector"]),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((3 * 6 * 5, 4), np.float32), "w")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w2"])]
    outputs = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = OnnxFile.parse(model.SerializeToString(), "other.onnx")
    with pytest.raises(InputError, match="cannot take 7x7 images .*--onnx size"):
        OnnxModel(file, options=options)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0, 0.9999))
def test_a_file_cut_off_anywhere_is_refused(exported, share):
    with pytest.raises(InputError, match=r"half\.onnx: (not an ONNX file|its metadata|onnxruntime)"):
        OnnxModel(OnnxFile.parse(exported[: int(share * len(exported))], "half.onnx"))


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(InputError):
        OnnxModel(OnnxFile.parse(data, "noise.onnx"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: "no json", "no JSON object"),
        (lambda card: json.dumps({**card, "format": 2}), "format 2"),
        (lambda card: json.dumps({k: v for k, v in card.items() if k != "input"}), "lacks input"),
        (lambda card: json.dumps({**card, "preprocessing": {}}), "metadata cannot be used"),
        (lambda card: json.dumps({**card, "output": {"name": "z"}}), "metadata names images and z"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(exported, change, message):
    model = onnx.load_from_string(exported)
    model.metadata_props[0].value = change(card_of(exported))
    with pytest.raises(InputError, match=message):
        OnnxModel(OnnxFile.parse(model.SerializeToString(), "model.onnx"))


def test_options_for_a_file_that_says_all_itself_are_refused(exported):
    with pytest.raises(InputError, match="says itself .*leave out --onnx mean"):
        OnnxModel(OnnxFile.parse(exported, "model.onnx"), options=SCALING)


def test_a_missing_file_and_a_folder(tmp_path):
    for place in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            OnnxModel(place)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_named(monkeypatch, embedder, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"^{package} is not installed.*metricid\[export\]"):
        export_onnx(embedder, name="small")


def test_cuda_without_a_provider_is_refused(monkeypatch, exported):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match="no CUDA provider"):
        OnnxModel(OnnxFile.parse(exported, "model.onnx"), device=torch.device("cuda", 0))


def test_a_network_that_cannot_be_captured_is_refused(embedder, monkeypatch):
    def forward(self, images):
        return images.mean(dim=(2, 3)) if images.sum() > 0 else images.amax(dim=(2, 3))

    monkeypatch.setattr(Embedder, "embed", forward)
    with pytest.raises(InputError, match="cannot be exported to ONNX"):
        export_onnx(embedder, name="small")


def test_wrong_images_are_a_fault_of_the_caller(exported):
    model = OnnxModel(OnnxFile.parse(exported, "model.onnx"))
    with pytest.raises(ValueError, match="expected uint8 images"):
        model.embed(torch.zeros(1, 3, 32, 24), flip=False)


def test_onnxruntime_reports_nothing(tmp_path):
    """It would keep an identifier of the machine in the home folder, and send events from there."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    (tmp_path / "relu.onnx").write_bytes(model.SerializeToString())
    code = "import numpy; {}.InferenceSession('relu.onnx').run(None, {{'x': numpy.ones(1, 'f')}})"
    ours = "__import__('metricid.models.onnx_file', fromlist=['_']).import_onnxruntime()"
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", code.format(ours)],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        check=True,
    )
    assert not list(home.rglob("*"))
