"""What vLLM loads in each of its processes (`vllm.general_plugins` in pyproject.toml); imports nothing by itself."""


def register() -> None:
    """Make the weight transfer `cvxrl` known; its module is imported where a server is started with it."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory as Factory

    if "cvxrl" not in Factory._registry:  # vLLM loads plugins more than once
        Factory.register_engine("cvxrl", "cvxrl.rollout.vllm.worker", "WeightReceiver")
