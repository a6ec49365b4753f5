#!/usr/bin/env bash
# Makes the rivals ready: benchmarks/.venv from requirements.txt (some gigabytes, mostly PyTorch) and benchmarks/node_modules.
# Needs python3 with venv, a C++ compiler and npm. llama.cpp is compiled here, for this processor: the published wheels are for any.
set -euo pipefail
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m venv .venv
.venv/bin/pip install --quiet --upgrade pip
CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release" \
  .venv/bin/pip install --no-binary llama-cpp-python -r requirements.txt
npm ci
