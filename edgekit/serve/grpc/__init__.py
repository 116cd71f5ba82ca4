"""The gRPC door: the Open Inference Protocol over HTTP/2, without grpcio."""
