# kconv without a compiler in the end: docker build -t kconv . && docker run --rm -v "$PWD:/work" kconv doctor
# With wheels of llama-cpp-python (tools/build_llama_wheels.py) the first stage takes a minute, without five to
# nine: docker build --build-arg LLAMA_CPP_WHEELS=https://... .
FROM python:3.12-slim-bookworm AS build
ARG LLAMA_CPP_WHEELS=""
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake ninja-build git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt ./
COPY tools/install_llama_cpp.py tools/
COPY core core
COPY runtimes runtimes
RUN python -m venv /opt/kconv
ENV PATH=/opt/kconv/bin:$PATH LLAMA_CPP_WHEELS=$LLAMA_CPP_WHEELS CMAKE_ARGS=-DGGML_NATIVE=OFF
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" torch \
    && python tools/install_llama_cpp.py constraints.txt
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt '.[onnx]'

FROM python:3.12-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home kconv
COPY --from=build /opt/kconv /opt/kconv
ENV PATH=/opt/kconv/bin:$PATH PYTHONUNBUFFERED=1
USER kconv
WORKDIR /work
ENTRYPOINT ["kconv"]
CMD ["--help"]
