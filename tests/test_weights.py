import json
import os
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy

from ddpo_fair import errors
from ddpo_fair.models import weights

TEMPLATE = parity.template({
    "blocks.0/conv/kernel": (3, 3, 2, 4), "blocks.0/conv/bias": (4,),
    "blocks.0/norm/scale": (4,), "proj/kernel": (4, 5), "token/embedding": (6, 4),
    "cls_token": (1, 1, 4),
})  # fmt: skip
CONFIG = {"b": 1, "a": [1, None, "c"]}
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def params():
    return parity.draw(TEMPLATE)


def write(path, tensors):
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(t) for name, t in tensors.items()}, path
    )


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_files_hold_official_names_and_axes_and_are_read_back(tmp_path, params):
    weights.save(tmp_path, params, CONFIG)
    tensors = safetensors.numpy.load_file(tmp_path / FILE)
    conv = params["blocks.0"]["conv"]
    expected = {
        "blocks.0.conv.weight": conv["kernel"].transpose(3, 2, 0, 1),
        "blocks.0.conv.bias": conv["bias"],
        "blocks.0.norm.weight": params["blocks.0"]["norm"]["scale"],
        "proj.weight": params["proj"]["kernel"].T,
        "token.weight": params["token"]["embedding"],
        "cls_token": params["cls_token"],
    }
    assert tensors.keys() == expected.keys()
    assert_equal(tensors, expected)
    with safetensors.safe_open(tmp_path / FILE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # transformers insists on it
    weights.save(tmp_path, jax.tree.map(jnp.asarray, params), CONFIG)
    loaded = weights.load(tmp_path, TEMPLATE)
    assert_equal(loaded, params)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(loaded))
    assert all(x.flags["C_CONTIGUOUS"] for x in jax.tree.leaves(loaded))
    assert weights.read_config(tmp_path) == CONFIG
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", FILE]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_file_becomes_float32(tmp_path, params, dtype):
    weights.save(tmp_path, params, CONFIG, dtype=dtype)
    loaded = weights.load(tmp_path, TEMPLATE)
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    assert_equal(loaded, expected)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_variant_is_another_file(tmp_path, params):
    name = "diffusion_pytorch_model.fp16.safetensors"
    weights.save(tmp_path, params, CONFIG, name, jnp.float16)
    half = weights.load(tmp_path, TEMPLATE, variant="fp16")
    assert_equal(weights.load(tmp_path, TEMPLATE), half)  # there are no others
    weights.save(tmp_path, params, CONFIG, name.replace("fp16", "bf16"), jnp.bfloat16)
    with pytest.raises(errors.UserError, match="variants bf16, fp16; choose"):
        weights.load(tmp_path, TEMPLATE)
    weights.save(tmp_path, params, CONFIG)
    assert_equal(weights.load(tmp_path, TEMPLATE), params)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda name: f"module.{name}",  # DistributedDataParallel
        lambda name: f"_orig_mod.{name}",  # torch.compile
        lambda name: name.replace("conv.", "conv.base_layer."),  # PEFT, unloaded
    ],
)
def test_names_of_wrapped_modules_are_read(tmp_path, params, spelling):
    weights.save(tmp_path, params, CONFIG)
    tensors = safetensors.numpy.load_file(tmp_path / FILE)
    tensors = {spelling(name): tensor for name, tensor in tensors.items()}
    others = ("logit_scale", "text_projection.weight", "vision_model.conv.weight")
    write(tmp_path / FILE, tensors | dict.fromkeys(others, np.zeros((3, 2), "f4")))
    assert_equal(weights.load(tmp_path, TEMPLATE), params)

    write(tmp_path / FILE, tensors | {"conv.lora_A.default.weight": np.zeros((3, 2))})
    with pytest.raises(errors.UserError, match=r"lora_A.*merge_and_unload"):
        weights.load(tmp_path, TEMPLATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_refused(tmp_path, params, value):
    weights.save(tmp_path, params, CONFIG)
    tensors = safetensors.numpy.load_file(tmp_path / FILE)
    broken = np.float64(tensors["proj.weight"])
    broken[2, 3] = value
    write(tmp_path / FILE, tensors | {"proj.weight": broken})
    words = f"proj.weight of {tmp_path / FILE} is not finite"
    with pytest.raises(errors.UserError, match=words):
        weights.load(tmp_path, TEMPLATE)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_one_tree(tmp_path, params, variant):
    weights.save(tmp_path, params, CONFIG)
    tensors = safetensors.numpy.load_file(tmp_path / FILE)
    (tmp_path / FILE).unlink()
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"model-{i % 2 + 1:05}-of-00002.safetensors"
    for shard in sorted(set(weight_map.values())):
        held = {n: t for n, t in tensors.items() if weight_map[n] == shard}
        write(tmp_path / shard, held)
    middle = f".{variant}" if variant else ""
    index = tmp_path / f"model.safetensors.index{middle}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_equal(weights.load(tmp_path, TEMPLATE, variant), params)

    write(tmp_path / shard, tensors)  # the other shard's tensors as well
    with pytest.raises(errors.UserError, match=r"is both in .*00001.*00002"):
        weights.load(tmp_path, TEMPLATE, variant)
    (tmp_path / shard).unlink()
    with pytest.raises(errors.UserError, match=f"names {shard}, which does not exist"):
        weights.load(tmp_path, TEMPLATE, variant)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "model.bin"])
def test_index_cannot_name_files_elsewhere(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"cls_token": name}}))
    with pytest.raises(errors.UserError, match="no safetensors file of its folder"):
        weights.load(tmp_path, TEMPLATE)


def test_each_tensor_that_does_not_fit_is_named_in_a_short_message(tmp_path, params):
    weights.save(tmp_path, params, CONFIG)
    tensors = safetensors.numpy.load_file(tmp_path / FILE)
    del tensors["cls_token"]
    tensors["proj.weight"] = np.zeros((5, 3), np.float32)
    tensors["extra.weight"] = np.zeros((7,), np.float32)
    tensors["token.weight"] = np.zeros((6, 4), np.int8)
    write(tmp_path / FILE, tensors)
    with pytest.raises(errors.UserError) as raised:
        weights.load(tmp_path, TEMPLATE)
    message = str(raised.value)
    path = tmp_path / FILE
    assert "cls_token [1, 1, 4] is missing" in message
    assert f"proj.weight of {path} has shape [5, 3], expected [5, 4]" in message
    assert f"extra.weight [7] of {path} is left over" in message
    assert f"token.weight of {path} is of type I8" in message
    write(tmp_path / FILE, {f"x{i}": np.zeros(1, np.float32) for i in range(20)})
    with pytest.raises(errors.UserError, match="and 18 more"):  # 20 + 6 - 8
        weights.load(tmp_path, TEMPLATE)
    shape = [1] * 100
    header = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (tmp_path / FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    template = {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}
    with pytest.raises(errors.UserError, match=r"x of .* cannot be read"):
        weights.load(tmp_path, template)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.msgpack"])
def test_pickle_is_refused_with_the_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(errors.UserError, match=f"only {name}.*convert it once"):
        weights.load(tmp_path, TEMPLATE)


def twice(sound):
    """A sound file, but for a tensor that its header names a second time."""
    (size,) = struct.unpack("<Q", sound[:8])
    header, data = sound[8 : 8 + size].rstrip(), sound[8 + size :]
    again = json.dumps({"cls_token": json.loads(header)["cls_token"]}).encode()
    header = header[:-1] + b"," + again[1:]
    return struct.pack("<Q", len(header)) + header + data


# Which headers are sound is safetensors' own business, but for a name that stands
# there twice: readers differ in which of the two they take.
@pytest.mark.parametrize(
    "harm",
    [
        lambda sound: b"",
        lambda sound: sound[:-3],
        lambda sound: b"<!DOCTYPE html><html></html>",
        lambda sound: b"\x80\x04\x95" + bytes(50),
        lambda sound: struct.pack("<Q", 10**5) + 10**5 * b"[",
        twice,
    ],
    ids=["empty", "cut", "a web page", "a pickle", "deep", "a name twice"],
)
def test_unsound_file_is_a_user_error(tmp_path, params, harm):
    weights.save(tmp_path, params, CONFIG)
    path = tmp_path / FILE
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(errors.UserError, match="no sound safetensors") as raised:
        weights.load(tmp_path, TEMPLATE)
    text = str(raised.value)
    assert str(path) in text and text.endswith("; copy it again from where it came.")


def test_a_damaged_file_of_the_hubs_cache_is_to_be_deleted(tmp_path, params):
    """The blob: as long as it is there the hub's client only links it again."""
    blob, folder = (
        tmp_path / "models--o--n/blobs/1",
        tmp_path / "models--o--n/snapshots/2",
    )
    weights.save(folder, params, CONFIG)
    blob.parent.mkdir()
    whole = (folder / FILE).read_bytes()
    blob.write_bytes(whole[:-3])
    (folder / FILE).unlink()
    (folder / FILE).symlink_to(blob)
    said = f"it has {len(whole) - 3:,} bytes, and by its header {len(whole):,}"
    with pytest.raises(errors.UserError, match=f"{said}.*; delete {blob}; the same"):
        weights.load(folder, TEMPLATE)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    weights.save(tmp_path, parity.draw(TEMPLATE), CONFIG)
    for name in (FILE, "config.json"):
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\n"
        (tmp_path / name).write_text(text)
    with pytest.raises(errors.UserError, match=f"{FILE} is a pointer.*git lfs pull"):
        weights.load(tmp_path, TEMPLATE)
    with pytest.raises(errors.UserError, match=r"config.json is a poin.*git lfs pull"):
        weights.read_config(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_mark_of_byte_order_is_no_matter(tmp_path, encoding):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding)
    assert weights.read_config(tmp_path) == CONFIG


def test_unreadable_config_is_a_user_error(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(errors.UserError, match="does not exist"):
        weights.read_config(tmp_path)
    os.mkfifo(path)  # is not waited for
    with pytest.raises(errors.UserError, match="does not exist"):
        weights.read_config(tmp_path)
    path.unlink()
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(errors.UserError, match=r"config\.json"):
            weights.read_config(tmp_path)


def test_failed_save_leaves_the_old_files(tmp_path, params):
    weights.save(tmp_path, params, CONFIG)
    too_large = {"proj": {"kernel": np.full((4, 5), 1e6, np.float32)}}
    with pytest.raises(errors.UserError, match=r"proj\.weight is not finite in float1"):
        weights.save(tmp_path, too_large, CONFIG, dtype=jnp.float16)
    with pytest.raises(TypeError):
        weights.save(tmp_path, params, {"not json": object()})
    assert_equal(weights.load(tmp_path, TEMPLATE), params)
    assert weights.read_config(tmp_path) == CONFIG
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", FILE]


def test_loading_holds_one_tensor_more_than_the_weights(tmp_path):
    shape = (128, 128)
    write(tmp_path / FILE, {f"x{i}.weight": np.ones(shape, "f4") for i in range(64)})
    leaf = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    tracemalloc.start()  # NumPy tells it of its arrays
    weights.load(tmp_path, {f"x{i}": leaf for i in range(64)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * 64 * 4 * 128**2
