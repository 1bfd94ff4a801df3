"""The ResNet and DeepLabV3 of the segmenter against torch, with random weights and few channels."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional
from transformers import ResNetConfig, ResNetModel

from experiments.segmenter import train
from experiments.segmenter.config import DATASET_DIFFUSION, LAPTOP, RECIPES
from experiments.segmenter.deeplab import DeepLabV3
from experiments.segmenter.resnet import ResNet, read_backbone
from experiments.segmenter.trainer import init_variables, make_network
from seediff_jax.errors import UserError
from tests.helpers.random_models import normal, quick_jit, relative_difference
from tests.helpers.torch_models import randomise, to_numpy, to_torch

_WIDTHS, _DEPTHS, _STEM = (16, 24, 32, 40), (1, 2, 1, 2), 8
_PLAIN = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}


def _flax_resnet(**options):
    return ResNet(_DEPTHS, _WIDTHS, _STEM, **options)


@pytest.fixture(scope="module")
def theirs():
    """transformers' ResNet; running statistics are random, so that they matter."""
    config = ResNetConfig(
        embedding_size=_STEM, hidden_sizes=list(_WIDTHS), depths=list(_DEPTHS),
        layer_type="bottleneck", downsample_in_bottleneck=False,
    )  # fmt: skip
    model = ResNetModel(config).eval()
    randomise(model, 0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=random)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=random)
    return model


@pytest.fixture(scope="module")
def expected_shapes():
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(_flax_resnet(**_PLAIN).init, jax.random.key(0), image)


@pytest.fixture(scope="module")
def weights_file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "model.safetensors"
    tensors = {f"resnet.{name}": value.numpy() for name, value in theirs.state_dict().items()}
    save_file(tensors | {"classifier.1.weight": np.zeros((2, 40), np.float32)}, path)
    return path


def _dilate(model):
    """Turns transformers' ResNet into output stride 8, as mmsegmentation does."""
    for stage, dilation in ((2, 2), (3, 4)):
        for index, layer in enumerate(model.encoder.stages[stage].layers):
            convolution = layer.layer[1].convolution
            used = dilation // 2 if index == 0 else dilation
            convolution.stride, convolution.dilation = (1, 1), (used, used)
            convolution.padding = (used, used)
            if hasattr(layer.shortcut, "convolution"):
                layer.shortcut.convolution.stride = (1, 1)


@pytest.mark.parametrize("dilated", [False, True])
def test_every_stage_agrees_with_transformers(theirs, weights_file, expected_shapes, dilated):
    model, network = copy.deepcopy(theirs), _flax_resnet(**({} if dilated else _PLAIN))
    if dilated:
        _dilate(model)
    variables = read_backbone(weights_file, expected_shapes)
    images = normal(0, 2, 40, 56, 3)
    with torch.no_grad():
        found = model(to_torch(images), output_hidden_states=True).hidden_states[1:]
    ours = quick_jit(network.apply)(variables, images)
    sides = [output.shape[1] for output in ours]
    assert sides == ([10, 5, 5, 5] if dilated else [10, 5, 3, 2])
    for output, reference in zip(ours, found, strict=True):
        # float32 with other orders of summation through nine blocks.
        assert relative_difference(output, to_numpy(reference)) < 1e-4


def _torchvision_names(name):
    """The name that torchvision has for a tensor of transformers."""
    part = name.rpartition(".")[2]
    if name.startswith("embedder"):
        return f"{'bn1' if 'normalization' in name else 'conv1'}.{part}"
    _, _, stage, _, layer, place, *rest = name.split(".")
    is_norm = "normalization" in name
    if place == "shortcut":
        return f"layer{int(stage) + 1}.{layer}.downsample.{int(is_norm)}.{part}"
    kind = "bn" if is_norm else "conv"
    return f"layer{int(stage) + 1}.{layer}.{kind}{int(rest[0]) + 1}.{part}"


def test_weights_in_torchvisions_names_are_the_same(
    theirs, weights_file, expected_shapes, tmp_path
):
    tensors = {_torchvision_names(n): value.numpy() for n, value in theirs.state_dict().items()}
    save_file(tensors | {"fc.weight": np.zeros((2, 40), np.float32)}, tmp_path / "tv.safetensors")
    found = read_backbone(tmp_path / "tv.safetensors", expected_shapes)
    jax.tree.map(np.testing.assert_array_equal, found, read_backbone(weights_file, expected_shapes))


def test_a_deep_stem_in_mmsegmentations_names_agrees_with_torch(theirs, tmp_path):
    stem = {}
    for k, (width, inputs) in enumerate([(4, 3), (4, 4), (8, 4)]):
        stem[f"stem.{3 * k}.weight"] = normal(k, width, inputs, 3, 3)
        for part in ("weight", "bias", "running_mean", "running_var"):
            values = normal(10 + k, width)
            stem[f"stem.{3 * k + 1}.{part}"] = values**2 if part == "running_var" else values
    layers = {_torchvision_names(n): value.numpy() for n, value in theirs.state_dict().items()}
    layers = {name: value for name, value in layers.items() if name.startswith("layer")}
    save_file(stem | layers, tmp_path / "v1c.safetensors")
    network, images = _flax_resnet(deep_stem=True, **_PLAIN), normal(0, 2, 40, 56, 3)
    variables = read_backbone(
        tmp_path / "v1c.safetensors", jax.eval_shape(network.init, jax.random.key(0), images)
    )
    weights = {name: torch.tensor(value) for name, value in stem.items()}
    x = to_torch(images)
    for k, stride in enumerate((2, 1, 1)):
        x = functional.conv2d(x, weights[f"stem.{3 * k}.weight"], stride=stride, padding=1)
        parts = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(weights[f"stem.{3 * k + 1}.{part}"] for part in parts))
        x = torch.relu(x)
    with torch.no_grad():
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        found = theirs.encoder(x, output_hidden_states=True).hidden_states[1:]
    for output, reference in zip(quick_jit(network.apply)(variables, images), found, strict=True):
        assert relative_difference(output, to_numpy(reference)) < 1e-4  # as above


def test_a_checkpoint_of_another_resnet_is_refused_with_all_that_differs(
    theirs, expected_shapes, tmp_path
):
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    del tensors["encoder.stages.3.layers.1.layer.0.convolution.weight"]
    tensors["encoder.stages.0.layers.9.layer.0.convolution.weight"] = np.zeros((1, 1, 1, 1), "f4")
    tensors["embedder.embedder.convolution.weight"] = np.zeros((8, 3, 3, 3), np.float32)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError) as caught:
        read_backbone(path, expected_shapes)
    message = str(caught.value)
    assert "stages.3.layers.1.layer.0.convolution.weight is missing" in message
    assert "stages.0.layers.9.layer.0.convolution.weight has no place" in message
    assert "embedder.embedder.convolution.weight has shape [8, 3, 3, 3]" in message


def _norm(x, params, stats):
    tensors = (stats["mean"], stats["var"], params["scale"], params["bias"])
    return functional.batch_norm(x, *(torch.tensor(np.array(t)) for t in tensors), eps=1e-5)


def _conv(x, kernel, dilation=1, bias=None):
    weight = torch.tensor(np.array(kernel).transpose(3, 2, 0, 1))
    padding = dilation * (weight.shape[-1] // 2)
    return functional.conv2d(x, weight, bias, padding=padding, dilation=dilation)


def _torch_head(features, variables, dilations, size):
    """DeepLabV3's head in torch, written out."""
    params, stats = variables["params"], variables["batch_stats"]

    def block(name, x, dilation=1):
        x = _conv(x, params[name]["conv"]["kernel"], dilation)
        return torch.relu(_norm(x, params[name]["norm"], stats[name]["norm"]))

    last = features[-1]
    pooled = block("image_mean", functional.adaptive_avg_pool2d(last, 1))
    branches = [functional.interpolate(pooled, last.shape[2:], mode="bilinear")]
    branches += [block(f"branch_{k}", last, d) for k, d in enumerate(dilations)]
    joined = block("join", torch.cat(branches, dim=1))
    end = params["logits"]
    logits = _conv(joined, end["kernel"], bias=torch.tensor(np.array(end["bias"])))
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def small_deeplab():
    backbone = ResNet((1, 1, 1, 1), (8, 8, 16, 16), 8, name="backbone")
    network = DeepLabV3(5, backbone, width=12, auxiliary_width=8, dilations=(1, 2, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    random = np.random.default_rng(2)

    def draw(path, leaf):
        values = random.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return values / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return np.abs(values) + np.float32(0.5) if path[-1].key in ("var", "scale") else values

    return network, jax.tree.map_with_path(draw, shapes)


def test_the_head_agrees_with_torch(small_deeplab):
    network, variables = small_deeplab
    images = normal(3, 1, 32, 48, 3)
    backbone = {kind: tree["backbone"] for kind, tree in variables.items()}
    features = quick_jit(network.backbone.apply)(backbone, images)
    torch_features = [to_torch(feature) for feature in features]
    expected = to_numpy(_torch_head(torch_features, variables, network.dilations, (32, 48)))
    (found,) = quick_jit(network.apply)(variables, images)
    assert found.shape == (1, 32, 48, 5)
    assert relative_difference(found, expected) < 1e-4


def test_the_second_head_of_training_agrees_with_torch(small_deeplab):
    network, variables = small_deeplab
    network = network.clone(dropout=0.0)
    images, options = normal(4, 2, 32, 48, 3), {"train": True, "mutable": ["batch_stats"]}
    backbone = {kind: tree["backbone"] for kind, tree in variables.items()}
    (*_, third, _), _ = network.backbone.apply(backbone, images, **options)
    params = variables["params"]
    own, end = params["auxiliary_conv"], params["auxiliary_logits"]
    x = _conv(to_torch(third), own["conv"]["kernel"])
    scale, bias = (torch.tensor(np.array(own["norm"][part])) for part in ("scale", "bias"))
    # Statistics are those of the batch.
    x = torch.relu(functional.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5))
    logits = _conv(x, end["kernel"], bias=torch.tensor(np.array(end["bias"])))
    logits = functional.interpolate(logits, (32, 48), mode="bilinear", align_corners=False)
    (_, found), _ = quick_jit(lambda v, x: network.apply(v, x, **options))(variables, images)
    assert relative_difference(found, to_numpy(logits)) < 1e-4


def test_training_has_a_second_head_and_moves_running_statistics(small_deeplab):
    network, variables = small_deeplab
    images = normal(4, 2, 32, 32, 3)

    @quick_jit
    def apply(variables, images):
        return network.apply(
            variables, images, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip

    heads, moved = apply(variables, images)
    assert [head.shape for head in heads] == [(2, 32, 32, 5)] * 2
    before = variables["batch_stats"]["backbone"]["stem_norm_0"]["mean"]
    after = moved["batch_stats"]["backbone"]["stem_norm_0"]["mean"]
    weight = torch.tensor(
        np.array(variables["params"]["backbone"]["stem_conv_0"]["kernel"]).transpose(3, 2, 0, 1)
    )
    batch = functional.conv2d(to_torch(images), weight, stride=2, padding=3)
    expected = 0.9 * before + 0.1 * batch.mean(dim=(0, 2, 3)).numpy()
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("network", "millions"), [("resnet50", 23.5), ("resnet101", 42.5)])
def test_full_sizes_have_the_published_numbers_of_weights(network, millions):
    config = dataclasses.replace(DATASET_DIFFUSION, network=network, deep_stem=False)
    shapes = jax.eval_shape(lambda: init_variables(config, 0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]["backbone"]))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)  # without the classifier
    logits = jax.eval_shape(
        make_network(config).apply, shapes, jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    )
    assert logits[0].shape == (1, 512, 512, 21)


def test_recipes_say_what_they_reproduce():
    assert all(config.reproduces for config in RECIPES.values())


def test_a_backbone_takes_the_place_of_random_weights(
    theirs, weights_file, expected_shapes, monkeypatch
):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(expected_shapes))
    random = {kind: {"backbone": tree, "logits": 7} for kind, tree in zeros.items()}
    monkeypatch.setattr(train, "init_variables", lambda config, rng_seed: random)
    variables = train.start_variables(DATASET_DIFFUSION, 0, str(weights_file))
    kernel = variables["params"]["backbone"]["stem_conv_0"]["kernel"]
    stored = theirs.embedder.embedder.convolution.weight.detach().numpy()
    np.testing.assert_array_equal(kernel, stored.transpose(2, 3, 1, 0))
    assert variables["params"]["logits"] == 7
    assert train.start_variables(DATASET_DIFFUSION, 0, None) is random
    with pytest.raises(UserError, match="has no backbone"):
        train.start_variables(LAPTOP, 0, "x.safetensors")
