"""The noisy quadratic model of Zhang et al. 2019; NumPy and SciPy alone."""
