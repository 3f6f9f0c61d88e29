"""Second moments of convolution patches, with and without the patches."""
