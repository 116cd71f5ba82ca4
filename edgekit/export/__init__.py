"""PyTorch or ONNX in, a checked package out. `build.export` is the door; the other files are its steps."""
