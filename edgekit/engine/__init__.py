"""TensorRT engines: built for a target, inspected, and planned for without a GPU.

`trt_module` holds every difference between releases of TensorRT and TensorRT-RTX, so that the rest is written once.
"""
