"""The embedder against its parts, and weight files of friends and strangers."""

import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from metricid.errors import InputError
from metricid.models.embedder import (
    Embedder,
    EmbedderConfig,
    Preprocessing,
    embedder_from_dict,
    embedder_to_dict,
)
from metricid.models.pooling import GeM
from metricid.models.weights import load_weights_file

SIZE = (64, 32)


def build(backbone="resnet10t", pooling="avg", neck="none", dim=None, **options):
    pixels = options.pop("preprocessing", Preprocessing(SIZE))
    return Embedder(EmbedderConfig(backbone, pixels, pooling, neck, dim), **options)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, *SIZE, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("backbone", "pooling", "width"),
    [
        ("resnet10t", "avg", 512),
        ("mobilenetv3_small_050", "avg", 288),
        ("mobilenetv3_small_050", "native", 1024),
        ("vit_tiny_patch16_224", "native", 192),
        ("vit_tiny_patch16_224", "gem", 192),
    ],
)
def test_the_width_is_what_the_network_gives(images, backbone, pooling, width):
    embedder = build(backbone, pooling)
    features, embedding = embedder(images)
    assert embedder.feature_dim == embedder.embedding_dim == width
    assert features.shape == embedding.shape == (4, width)


def test_every_trained_parameter_gets_a_gradient(images):
    embedder = build("mobilenetv3_small_050", "avg", "bnneck", 32)
    embedder(images).embedding.square().sum().backward()
    assert all(p.grad is not None for p in embedder.parameters() if p.requires_grad)


def test_average_pooling_equals_timms_own(images):
    embedder = build().eval()
    expected = embedder.backbone(embedder.normalize(images))
    assert_close(embedder(images).embedding, expected)


def test_gem_equals_its_definition():
    x = torch.rand(3, 5, 12, dtype=torch.float32)
    for p in (1.0, 3.0, 7.5):
        expected = (x.double() ** p).mean(-1) ** (1 / p)
        assert_close(GeM(p)(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_gem_has_a_finite_gradient_on_zeros():
    x = torch.zeros(2, 3, 4, requires_grad=True)
    GeM()(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_necks_have_their_structure(images):
    plain = build(neck="none", dim=16)
    assert plain.feature_dim == plain.embedding_dim == 16
    out = plain(images)
    assert_close(out.features, out.embedding)

    bnneck = build(neck="bnneck", dim=16)
    features, embedding = bnneck(images)
    assert features.shape == embedding.shape == (4, 16)
    assert_close(
        embedding, torch.nn.functional.batch_norm(features, None, None, training=True), atol=1e-5, rtol=1e-4
    )
    assert not bnneck.neck.bias.requires_grad

    linear = build(neck="linear_bn", dim=16)
    features, embedding = linear(images)
    assert features.shape == (4, 512)
    assert embedding.shape == (4, 16)


def test_pixels_are_normalised_in_the_order_of_the_weights(images):
    rgb = build(preprocessing=Preprocessing(SIZE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "RGB"))
    expected = (
        images.permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    ) / torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    assert_close(rgb.normalize(images), expected)
    bgr = build(preprocessing=Preprocessing(SIZE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "BGR"))
    assert_close(bgr.normalize(images), rgb.normalize(images.flip(3)))


def test_the_description_rebuilds_the_same_network(images):
    first = build(neck="bnneck", dim=24).eval()
    again = Embedder(embedder_from_dict(embedder_to_dict(first.config))).eval()
    again.load_state_dict(first.state_dict())
    assert_close(first(images), again(images))
    with pytest.raises(InputError, match="not the description"):
        embedder_from_dict({"backbone": "resnet10t"})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_local_weights_are_loaded(tmp_path, images, suffix, wrapped):
    if suffix == ".safetensors" and wrapped:
        pytest.skip("safetensors files are flat")
    torch.manual_seed(1)
    source = timm.create_model("resnet10t", num_classes=7)
    file = tmp_path / f"weights{suffix}"
    state = {f"module.{k}" if wrapped else k: v for k, v in source.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, file)
    embedder = build(weights=str(file)).eval()
    source.reset_classifier(0)
    assert_close(embedder(images).embedding, source.eval()(embedder.normalize(images)))
    assert embedder.config.preprocessing.size == SIZE


def test_the_backbone_of_an_embedder_is_taken_from_its_weights(tmp_path, images):
    first = build(neck="bnneck", dim=24).eval()
    torch.save({"model": first.state_dict()}, tmp_path / "w.pth")
    second = build(neck="none", weights=str(tmp_path / "w.pth")).eval()
    assert_close(first.backbone(first.normalize(images)), second(images).embedding)


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_weight_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": _Evil()}))
    with pytest.raises(InputError, match="refused"):
        load_weights_file(tmp_path / "w.pth")
    torch.save({"a": _Evil()}, tmp_path / "w2.pth")
    with pytest.raises(InputError, match="refused"):
        load_weights_file(tmp_path / "w2.pth")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"nonsense", "not a readable weight file"),
        ("w.pth", b"", "readable weight file|damaged"),
        ("w.pth", b"nonsense nonsense", "damaged"),
        ("w.pth", b"a", "w.pth"),
        ("w.pth", b"0", "w.pth"),
    ],
)
def test_a_damaged_weight_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        build(weights=str(tmp_path / name))


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="do not fit resnet10t"):
        build(weights=str(tmp_path / "w.pth"))
    torch.save({"a": [1]}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no tensors"):
        build(weights=str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match="no such weight file"):
        build(weights=str(tmp_path / "none.pth"))


def test_a_download_that_fails_says_how_to_pass_a_file(monkeypatch):
    def offline(name, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"no route to host.*model\.weights=/path"):
        build(pretrained=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet81"}, "did you mean"),
        ({"neck": "linear_bn"}, "needs it"),
        ({"backbone_options": {"colour": 3}}, "cannot be built"),
    ],
)
def test_a_structure_that_cannot_be_is_named(config, message):
    values = {"backbone": "resnet10t", "preprocessing": Preprocessing(SIZE), **config}
    with pytest.raises(InputError, match=message):
        Embedder(EmbedderConfig(**values))


def test_a_size_that_the_network_cannot_take_is_named():
    with pytest.raises(InputError, match="cannot take 3x3|cannot be built"):
        Embedder(EmbedderConfig("vit_tiny_patch16_224", Preprocessing((3, 3))))


@pytest.mark.parametrize(
    ("option", "value"), [("features_only", True), ("global_pool", ""), ("num_classes", 9), ("in_chans", 1)]
)
def test_backbone_options_that_change_the_output_are_refused_by_name(option, value):
    with pytest.raises(InputError, match=rf"model\.backbone_options: {option}"):
        Embedder(EmbedderConfig("test_resnet", Preprocessing(SIZE), backbone_options={option: value}))


def test_an_unknown_weight_tag_is_named_with_those_that_exist():
    with pytest.raises(InputError, match=r"no weight tag 'nosuch' \(known: a1_in1k, "):
        build("resnet18.nosuch")


def test_a_backbone_that_gives_no_vector_is_refused(monkeypatch):
    monkeypatch.setattr(Embedder, "_pool", lambda self, x: (self.backbone.forward_features(x), None))
    with pytest.raises(InputError, match=r"model\.pooling: test_resnet gives \(1, .*model\.pooling=avg"):
        build("test_resnet", "native")


def test_weights_are_found_below_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("METRICID_TEST_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=f"{tmp_path}/none.pth: no such weight file"):
        build("test_resnet", weights="$METRICID_TEST_WEIGHTS/none.pth")


def test_the_memory_order_of_the_input_is_that_of_the_weights(images):
    embedder = build("test_resnet", preprocessing=Preprocessing(SIZE, color_order="BGR"))
    last = embedder.normalize(images)
    embedder.channels_last = False
    first = embedder.normalize(images)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert_close(first, last)
