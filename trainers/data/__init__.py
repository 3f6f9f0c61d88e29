"""Data sets by the name that --dataset gives them.

    images   those of images: names and sizes, options, batches
    batches  which example is in which batch; crops, flips, erasing, mixup
    on_disk  what TFDS or a package has brought, and what can be wrong with it
    records  imagenet2012, read from its files
    tokens   those of text: names and sizes, options, batches of tokens
    text     sentences as files of tokens
    once     files that rank 0 makes for all

A run of images loads the first three; one of imagenet2012 `records` and `once`,
too.
"""
