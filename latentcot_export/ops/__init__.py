"""The four ops of a pass: one file each, with its contract and its eager reference.

The references are written so that `torch.export` turns them into standard ONNX operators: they are what the portable
graph computes, and what the native kernels are compared with.
"""
