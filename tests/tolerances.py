"""Every tolerance of the tests, relative to the largest number compared, with its reason. Never loosened to pass."""

# float32 outputs and losses of the same weights in another framework: different summation orders, nothing else
FORWARD = 1e-5
# gradients: sums over all tokens of the batch on top of that
GRADIENT = 2e-4
# one device against eight, accumulation against the full batch: the same sums in another order
SUM_ORDER = 2e-5
# formulas worked by hand in float64
EXACT = 1e-6
# logits of converted weights against the code they came from, float32: B-sized and smaller; L and H add more terms
CONVERTED = 1e-5
CONVERTED_LARGE = 1e-4
# twenty optimiser steps beside PyTorch: losses at every step, parameters at the end
TRAJECTORY_LOSS = 1e-4
TRAJECTORY_PARAMS = 1e-3
MESH = 1e-5  # losses, metrics and gradients of one step over eight devices against one, float32
# onnxruntime beside XLA, float32, pictures of the model's own size
ONNX = 1e-5
