"""Nearest neighbors as one weighted average: y(x) = sum_j softmax_j(s(x, c_j)) v_j."""

__version__ = "0.1.0"
