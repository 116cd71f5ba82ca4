"""HTTP/2 (RFC 9113) as a server for gRPC needs it: frames, header blocks, flow control, and limits on all of them."""
