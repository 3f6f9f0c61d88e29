"""Trains residual and other networks on small images in colour, or on digits.

    horovodrun -np 2 python -m trainers.cifar --dataset=digits
    horovodrun -np 4 python -m trainers.cifar --preset=ma_kfac --batch_size=1024

The runs of Ma et al. 2019 and Zhang et al. 2019 on CIFAR-10 and SVHN are
--preset values: `trainers/configs/cifar.py`. On those data sets: not yet run in
full.
"""

from trainers import command_line
from trainers.configs.cifar import TRAINER

if __name__ == "__main__":
    command_line.main(TRAINER, __doc__)
