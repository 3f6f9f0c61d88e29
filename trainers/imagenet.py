"""Trains ResNet-50 on ImageNet (Osawa et al. 2019).

    python -m trainers.imagenet --preset=osawa_32768 --dry_run
    horovodrun -np 1024 python -m trainers.imagenet --preset=osawa_32768
    horovodrun -np 64 python -m trainers.imagenet --preset=osawa_32768 \\
        --gradient_accumulation_steps=16

32 images a GPU at a time, as in the paper. On ImageNet: not yet run.
"""

from trainers import command_line
from trainers.configs.imagenet import TRAINER

if __name__ == "__main__":
    command_line.main(TRAINER, __doc__)
