#!/bin/sh
# Makes gen/torrelque_wire/ from the proto file. PYTHON is the interpreter that has grpcio-tools.
#
# protoc puts a file's path below its include path into the imports of what it generates. With `-I proto` that is
# `from torrelque.v1 import torrelque_pb2`: it would collide with the library `torrelque` wherever that is installed.
# So the folder is mapped to a path of our own: `torrelque_wire`. Names on the wire come from the `package` line of the
# file and stay as they are.
set -eu
cd "$(dirname "$0")"
mkdir -p gen
"${PYTHON:-python}" -m grpc_tools.protoc -Itorrelque_wire="${TORRELQUE_PROTO:-../../proto}/torrelque/v1" \
    --python_out=gen --pyi_out=gen --grpc_python_out=gen torrelque_wire/torrelque.proto
