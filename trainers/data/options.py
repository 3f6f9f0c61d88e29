"""How a data set is read."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Options:
    """How a data set is read; what is not for its kind is ignored.

    Attributes:
        augment: Images: random crops and flips, those of the data set.
        crop_padding: Images: black pixels around the image that is cropped;
            None: as many as is usual for the data set (cifar10 and svhn_cropped
            4, others 0).
        validation: Hold out the last training examples as a validation split.
        mixup: Images: alpha of running mixup; None: no mixup.
        random_erasing: Images: erase a rectangle in every other image.
        one_hot: Images: labels as float32 [classes]; always so with mixup.
        vocabulary: Text: the number of tokens.
        length: Text: tokens in a sequence.
        packed: Text: sentences joined and cut into sequences without padding;
            else each sentence by itself, cut or padded with token 0.
        text_dir: Where the tokenizer and the tokens, and imagenet2012's mean
            image, are kept; None: beside the data.

    Raises:
        ValueError: A number is out of its range.
    """

    augment: bool = True
    crop_padding: int | None = None
    validation: bool = False
    mixup: float | None = None
    random_erasing: bool = False
    one_hot: bool = False
    vocabulary: int = 32_768
    length: int = 128
    packed: bool = True
    text_dir: str | None = None

    def __post_init__(self):
        if self.mixup is not None and not 0 < self.mixup < math.inf:
            raise ValueError(f"mixup={self.mixup}: must be greater than 0")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ValueError(
                f"crop_padding={self.crop_padding}: must be 0 or more"
            )
        for name in ("vocabulary", "length"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value}: must be greater than 0")
