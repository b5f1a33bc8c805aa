"""Calls a neox-serve gateway without its client and without generated code: the messages come from the server by reflection.

    python reflection.py HOST:PORT

Every language with gRPC can do the same, or generate code from the .proto files. It needs grpcio, grpcio-reflection and grpcio-status.
"""

import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

channel = grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
database = ProtoReflectionDescriptorDatabase(channel)
pool = DescriptorPool(database)
print("services:", ", ".join(sorted(database.get_services())))


def call(method, request, timeout_s=60.0):
    """Calls `Service.Method` with a mapping in the form of proto3 JSON, and returns the answer in the same form."""
    service, name = method.split(".")
    described = pool.FindServiceByName(f"neox_serve.v1.{service}").FindMethodByName(name)
    request_type, response_type = map(message_factory.GetMessageClass, (described.input_type, described.output_type))
    invoke = channel.unary_unary(f"/neox_serve.v1.{service}/{name}", request_type.SerializeToString, response_type.FromString)
    return json_format.MessageToDict(invoke(json_format.ParseDict(request, request_type()), timeout=timeout_s))


answer = call(
    "InferenceService.Generate",
    {"prompts": [{"text": "def fibonacci(n):"}], "parameters": {"sampling": {"temperature": 0}, "stopping": {"maxTokens": 16}}},
)
print("completion:", answer["results"][0]["completions"][0]["text"])

try:
    call("InferenceService.Generate", {"prompts": [{"text": "x"}], "parameters": {"sampling": {"temperature": -1}}})
except grpc.RpcError as error:
    for detail in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                unpacked = kind()
                detail.Unpack(unpacked)
                print("error:", error.code().name, json_format.MessageToJson(unpacked, indent=None))
