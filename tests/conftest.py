"""One strict JAX for all tests: eight CPU devices, no promotion, no warning, no hub."""

import importlib.util
import os
import sys
import tempfile

# Of this session: several tests and their processes compile the same programs.
CACHE = tempfile.TemporaryDirectory(prefix="ddpo_fair_tests_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# In the processes that tests start, too.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

DEVICES = "--xla_force_host_platform_device_count=8"
# XLA's older emitters compile in half the time, and in one piece with less work.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402 - reads XLA_FLAGS
import jaxlib  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

if importlib.util.find_spec("torch") is None:
    sys.modules["diffusers"] = None  # which has names without it, and they raise

# What these warn about is theirs to fix.
THIRD_PARTY = (
    "absl|etils|diffusers|flax|huggingface_hub|jax|matplotlib|ml_collections|numba"
    "|orbax|safetensors|tensorboard|tensorflow|tensorflow_datasets|torch|transformers"
)


def pytest_configure(config: pytest.Config) -> None:
    # A version that does not know the flags would end the process.
    users = config.option.markexpr in ("exact", "slow")
    if not users and jaxlib.__version__.startswith("0.10."):
        os.environ["XLA_FLAGS"] += f" {QUICK}"
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", f"ignore:::({THIRD_PARTY})")
    # When Orbax meets a damaged file or a full disk it closes its event loop while
    # tensorstore still works on the others, whose late answers then go nowhere.
    for task in ("None", "<coroutine object async_serialize_from_host"):
        config.addinivalue_line(
            "filterwarnings",
            f"ignore:Exception ignored in. {task}"
            ":pytest.PytestUnraisableExceptionWarning",
        )


# Each has long tests of a minute or so.
SLOWEST = ("notebooks", "processes", "settings", "sharded_optimizer")
SLOWEST += ("stable_diffusion_3", "train")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole runs come first: at the end one process would wait for them."""
    whole = {
        item.path
        for item in items
        if item.get_closest_marker("long") or "tiny" in item.fixturenames
    }
    slowest = {f"test_{name}" for name in SLOWEST}
    items.sort(key=lambda item: (item.path not in whole, item.path.stem not in slowest))


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Most of the time is compilation, except at full size."""
    full = {"slow", "exact"} & {mark.name for mark in request.node.iter_markers()}
    jax.config.update("jax_disable_most_optimizations", not full)


@pytest.fixture
def torch():
    """PyTorch, seeded, on one thread; without it the test is skipped."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    module.manual_seed(0)
    return module


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folders of a tiny model and of a tiny classifier, which no test changes."""
    import tiny_model  # imports most of the package, which few tests need

    root = tmp_path_factory.mktemp("tiny")
    return (
        tiny_model.save_model(root / "model"),
        tiny_model.save_classifier(root / "classifier"),
    )


@pytest.fixture(scope="module")
def sound(tiny):
    """The folder with both, after importing what loading them imports."""
    from ddpo_fair.diffusion import stable_diffusion

    stable_diffusion.load(tiny[0])
    return tiny[0].parent
