#!/usr/bin/env bash
# Makes the rivals ready: benchmarks/.venv from requirements.txt (some gigabytes, mostly PyTorch), benchmarks/.rival/bin with llama.cpp's own
# llama-server and llama-quantize, and benchmarks/node_modules. What is there already is not made again.
# Needs python3 with venv, a C++ compiler, cmake and npm. llama.cpp is compiled here, for this processor: the published wheels are for any.
# By clang where there is one: gcc 12 loses the tile configuration of llama.cpp's AMX code, which then ends with SIGILL. (With libomp-dev
# clang's llama.cpp has OpenMP as gcc's has; without it, llama.cpp's own threads.)
set -euo pipefail
cd "$(dirname "$0")"
here="$PWD"
options=(-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release)
for clang in clang-19 clang; do
  if command -v "$clang" > /dev/null && command -v "${clang/clang/clang++}" > /dev/null; then
    options+=("-DCMAKE_C_COMPILER=$clang" "-DCMAKE_CXX_COMPILER=${clang/clang/clang++}")
    break
  fi
done

"${PYTHON:-python3}" -m venv .venv
.venv/bin/pip install --quiet --upgrade pip
CMAKE_ARGS="${options[*]}" .venv/bin/pip install --no-binary llama-cpp-python -r requirements.txt

if [ ! -x .rival/bin/llama-server ] || [ ! -x .rival/bin/llama-quantize ]; then
  mkdir -p .rival/source .rival/bin
  .venv/bin/pip download --quiet --no-binary llama-cpp-python --no-deps --dest .rival "$(grep '^llama-cpp-python==' requirements.txt)"
  tar --extract --gzip --file .rival/llama_cpp_python-*.tar.gz --directory .rival/source --strip-components 1
  cmake -S .rival/source/vendor/llama.cpp -B .rival/build "${options[@]}" -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  cmake --build .rival/build --parallel 2 --target llama-server llama-quantize
  cp .rival/build/bin/llama-server .rival/build/bin/llama-quantize .rival/bin/
  rm -rf .rival/build .rival/source .rival/llama_cpp_python-*.tar.gz
fi

cd "$here"
npm ci
