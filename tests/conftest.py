"""One strict JAX for all tests: eight CPU devices, no promotion, no warning, no hub."""

import os
import tempfile

# Of this session: several tests and their processes compile the same programs.
CACHE = tempfile.TemporaryDirectory(prefix="ddpo_fair_tests_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)

DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402 - reads XLA_FLAGS
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What these warn about is theirs to mend.
THIRD_PARTY = (
    "absl|etils|diffusers|flax|huggingface_hub|jax|matplotlib|ml_collections|numba"
    "|orbax|safetensors|tensorboard|tensorflow|tensorflow_datasets|torch|transformers"
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", f"ignore:::({THIRD_PARTY})")
    # When Orbax meets a damaged file or a full disk it closes its event loop while
    # tensorstore still works on the others, whose late answers then have nobody to take
    # them.
    for nobody in ("None", "<coroutine object async_serialize_from_host"):
        config.addinivalue_line(
            "filterwarnings",
            f"ignore:Exception ignored in. {nobody}"
            ":pytest.PytestUnraisableExceptionWarning",
        )


@pytest.fixture
def torch():
    """PyTorch, seeded, on one thread; without it the test is skipped."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    module.manual_seed(0)
    return module
