"""Eight pretended CPU devices, no silent broadcasting, compiled programs kept between runs."""

import os
import signal
import tempfile
from pathlib import Path

# Half of a cold run is LLVM's optimising of programs that run for milliseconds. XLA_FLAGS of the caller win.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "vit_jax_test_cache"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

from vit_jax import configuration

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
configuration.use_recipes()

# Whoever starts the tests in the background starts them deaf to Ctrl-C, and every process they start; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def shrink_section(config):
    """The stacks of blocks in a method's own section, tiny."""
    section = config.get(config.objective, {})
    for stack in [stack for stack in section.values() if hasattr(stack, "keys") and "num_layers" in stack]:
        stack.update({"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32})
    if config.objective == "tokenizer":
        section.update(
            {"vocab_size": 16, "blocks_per_group": 1, "encoder_width": 8, "decoder_width": 8, "decoder_inputs": 8}
        )


@pytest.fixture
def small(make_small):
    return make_small


@pytest.fixture(scope="session")
def make_small():
    """The smallest configuration that has everything: digits-sized, float32, two blocks."""

    def make(stage="scratch", **changes):
        config = configuration.load(f"digits.py:{stage}")
        config.dataset = "fake"
        config.pp.update({"crop": 8, "channels": 3, "train_crop": "resize"})
        config.pp.train = "train"
        config.model.hidden_size = 16
        config.model.transformer.update({"num_layers": 2, "num_heads": 2, "mlp_dim": 32})
        shrink_section(config)
        config.update({"batch": 16, "batch_eval": 32, "total_steps": 6, "warmup_steps": 2, "progress_every": 2})
        config.update({"eval_every": 0, "checkpoint_every": 3, "num_threads": 1})
        config.update(changes)
        return config

    return make


def pytest_addoption(parser):
    parser.addoption("--refresh-reviewed", action="store_true", help="write tests/reviewed/ anew; then read the diff")
