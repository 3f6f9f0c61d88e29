"""Transposed convolutions in float64 NumPy, for `reference`."""

import numpy as np
import reference_layers


class TransposedConvolution(reference_layers.Convolution):
    """s = W^T a at output positions o, with a zero where no input comes.

    a holds at tap t the input i with i * stride + t * dilation = o + crop.
    """

    def __init__(
        self,
        kernel,
        bias=None,
        strides=1,
        padding="valid",
        dilation=1,
        output_padding=None,
    ):
        """Takes a kernel [*window, c_out, c_in], a bias [c_out]."""
        kernel = np.swapaxes(kernel, -1, -2)
        super().__init__(kernel, bias, strides, padding, dilation)
        self.extra = output_padding or [None] * len(self.window)

    def geometry(self, shape):
        """For an axis each: the number of positions, those cropped before."""
        axes = zip(
            shape[1:-1], self.window, self.strides, self.dilation, self.extra
        )
        for size, window, stride, dilation, extra in axes:
            reach = (window - 1) * dilation + 1
            whole = (size - 1) * stride + reach
            if self.padding == "valid":
                if extra is None:
                    extra = max(stride - reach, 0)
                yield whole + extra, 0
            else:
                count = size * stride
                if extra is not None:
                    count = (size - 1) * stride + reach % 2 + extra
                yield count, max(whole - count, 0) // 2

    def taps(self, shape):
        counts, before = zip(*self.geometry(shape))
        for i in np.ndindex(*shape[1:-1]):
            for t in np.ndindex(*self.window):
                o = self.strides * i + self.dilation * t - before
                if np.all((o >= 0) & (o < counts)):
                    yield tuple(o), t, i
